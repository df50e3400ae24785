use crate::family::hybrid::{Heads, Mamba};
use crate::family::nemotron_h::{self, Layer};
use crate::family::{
    Config, Init, TensorSpec, Tensors, bamba, falcon_h1, gla, granitemoehybrid, itera, llama, lowrankq,
    mamba2,
};
use crate::layer::room::Room;
use candle_core::{D, Device, Tensor, Var};
use std::collections::BTreeMap;

/// Nothing that training starts from: every parameter is to matter.
fn tensors(config: &Config) -> Tensors {
    let specs = config.tensors().into_iter().enumerate();
    let one = |(seed, spec): (usize, TensorSpec)| {
        let middle = if let Init::Constant(value) = spec.init { value } else { 0.0 };
        let wave = |i: usize| middle + ((i * 7919 + seed * 31 + 13) % 1009) as f32 / 1009.0 - 0.5;
        let values = (0..spec.shape.iter().product()).map(wave).collect::<Vec<f32>>();
        (spec.name, Tensor::from_vec(values, spec.shape, &Device::Cpu).unwrap())
    };
    specs.map(one).collect()
}

#[test]
fn gradients_are_those_of_the_definition() {
    let plain = mamba2::Config {
        hidden_size: 24,
        num_hidden_layers: 2,
        vocab_size: 50,
        num_heads: 4,
        head_dim: 16,
        state_size: 8,
        ..Default::default()
    };
    let other = mamba2::Config {
        use_bias: true,
        use_conv_bias: false,
        tie_word_embeddings: false,
        n_groups: 2,
        conv_kernel: 3,
        ..plain.clone()
    };
    let grouped = llama::Config {
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        num_key_value_heads: 1,
        head_dim: 10,
        vocab_size: 50,
        attention_bias: true,
        ..Default::default()
    };
    let untied = llama::Config {
        num_key_value_heads: 3,
        attention_bias: false,
        mlp_bias: true,
        tie_word_embeddings: false,
        ..grouped.clone()
    };
    let linear = gla::Config {
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_heads: 2,
        num_kv_heads: 1,
        gate_low_rank_dim: 5,
        vocab_size: 50,
        clamp_min: Some(-0.05),
        ..Default::default()
    };
    let hybrid =
        gla::Hybrid { layers: vec![0], num_heads: 2, num_kv_heads: 1, qkv_bias: true, rope_theta: 100.0 };
    let hybrid = gla::Config {
        num_kv_heads: 2,
        clamp_min: None,
        use_output_gate: false,
        tie_word_embeddings: false,
        attn: Some(hybrid),
        ..linear.clone()
    };
    let low = lowrankq::Config {
        vocab_size: 50,
        num_layers: 5,
        model_dim: 24,
        num_heads: 3,
        num_kv_heads: 1,
        mlp_hidden: 40,
        q_rank: lowrankq::Rank::Layers(vec![5, 0, 3, 7, 0]),
        bigram_vocab_size: 30,
        bigram_dim: 10,
        ..Default::default()
    };
    let plain_low = lowrankq::Config {
        num_layers: 1,
        num_kv_heads: 3,
        q_rank: lowrankq::Rank::All(6),
        bigram_dim: 24,
        smear_gate: false,
        tie_embeddings: false,
        logit_softcap: 0.0,
        ..low.clone()
    };
    let shared = lowrankq::Config { iterations: 3, ..low.clone() };
    let experts = itera::Config {
        vocab_size: 50,
        hidden_size: 24,
        num_layers: 3,
        ssm_state_size: 5,
        num_experts: 3,
        expert_size: 10,
        moe_layers: vec![0, 2],
        ..Default::default()
    };
    let sizes = |inner, widths: &[usize]| itera::Layer { inner, widths: widths.to_vec() };
    let uneven = itera::Config {
        num_layers: 2,
        moe_layers: vec![1],
        tie_word_embeddings: false,
        layer_sizes: vec![sizes(30, &[9]), sizes(17, &[8, 12])],
        ..experts.clone()
    };
    let mixer = Mamba {
        mamba_n_heads: 6,
        mamba_d_head: 5,
        mamba_n_groups: 2,
        mamba_d_state: 7,
        mamba_d_conv: 3,
        time_step_limit: (0.3, 0.9),
        ..Default::default()
    };
    let heads = Heads { num_attention_heads: 3, num_key_value_heads: 1, head_dim: 10, attention_bias: true };
    let granite = granitemoehybrid::Config {
        hidden_size: 24,
        vocab_size: 50,
        mamba: mixer.clone(),
        heads: heads.clone(),
        num_local_experts: 3,
        intermediate_size: 9,
        shared_intermediate_size: 13,
        embedding_multiplier: 1.7,
        residual_multiplier: 0.6,
        attention_multiplier: 0.2,
        logits_scaling: 0.4,
        ..Default::default()
    };
    let dense = granitemoehybrid::Config {
        mamba: Mamba { mamba_proj_bias: true, mamba_out_bias: true, mamba_conv_bias: false, ..mixer.clone() },
        num_local_experts: 0,
        // Without positions no loss depends on a bias of keys.
        heads: Heads { attention_bias: false, ..heads.clone() },
        rope: None,
        tie_word_embeddings: false,
        ..granite.clone()
    };
    let half = bamba::Config {
        hidden_size: 24,
        vocab_size: 50,
        num_hidden_layers: 2,
        attn_layer_indices: vec![0],
        mamba: mixer.clone(),
        heads: heads.clone(),
        partial_rotary_factor: 0.45,
        intermediate_size: 13,
        mlp_bias: true,
        ..Default::default()
    };
    let both = falcon_h1::Config {
        hidden_size: 24,
        vocab_size: 50,
        num_hidden_layers: 2,
        mamba: Mamba { mamba_out_bias: true, ..mixer.clone() },
        heads: heads.clone(),
        intermediate_size: 13,
        mlp_bias: true,
        embedding_multiplier: 1.7,
        lm_head_multiplier: 0.6,
        key_multiplier: 0.7,
        attention_in_multiplier: 1.3,
        attention_out_multiplier: 0.8,
        ssm_in_multiplier: 1.2,
        ssm_out_multiplier: 0.9,
        ssm_multipliers: [0.9, 1.2, 0.8, 1.1, 0.7],
        mlp_multipliers: [0.85, 0.7],
        ..Default::default()
    };
    let gate_alone = falcon_h1::Config { mamba_rms_norm: false, tie_word_embeddings: false, ..both.clone() };
    let mixed = nemotron_h::Config {
        hidden_size: 24,
        vocab_size: 50,
        hybrid_override_pattern: vec![Layer::Mamba, Layer::Moe, Layer::Attention, Layer::Mlp],
        mamba: mixer.clone(),
        heads: Heads { attention_bias: false, ..heads.clone() },
        intermediate_size: 13,
        experts: nemotron_h::Experts {
            n_routed_experts: 6,
            n_group: 2,
            routed_scaling_factor: 1.7,
            moe_intermediate_size: 7,
            moe_shared_expert_intermediate_size: 9,
            ..Default::default()
        },
        ..Default::default()
    };
    for (config, time) in [
        (Config::FalconH1(both), 70),
        (Config::FalconH1(gate_alone), 33),
        (Config::NemotronH(mixed), 70),
        (Config::Bamba(half), 70),
        (Config::Granitemoehybrid(granite), 70),
        (Config::Granitemoehybrid(dense), 33),
        (Config::IteraLite(experts), 70),
        (Config::IteraLite(uneven), 33),
        (Config::LowrankQ(shared), 70),
        (Config::LowrankQ(low), 70),
        (Config::LowrankQ(plain_low), 9),
        (Config::Gla(linear.clone()), 130),
        (Config::Gla(linear), 5),
        (Config::Gla(hybrid), 70),
        (Config::Mamba2(plain.clone()), 130),
        (Config::Mamba2(plain), 5),
        (Config::Mamba2(other), 70),
        (Config::Llama(grouped), 70),
        (Config::Llama(untied), 9),
    ] {
        let tensors = tensors(&config);
        let ids: Vec<u32> = (0..=time as u32).map(|i| i * i % 50).collect();
        let vars: BTreeMap<String, Var> =
            tensors.iter().map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap())).collect();
        let tracked = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let network = config.stack(&tracked, &Default::default()).unwrap();
        let tokens = Tensor::from_slice(&ids[..time], (1, time), &Device::Cpu).unwrap();
        let logits = network.logits(&network.hidden(&tokens, None).unwrap()).unwrap();
        // A loss with a different slope at every logit.
        let pull: Vec<f32> = (0..time * 50).map(|i| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0).collect();
        let pulled = Tensor::from_slice(&pull, logits.shape(), &Device::Cpu).unwrap();
        let loss = (logits * pulled).unwrap().sum_all().unwrap();
        let defined = loss.backward().unwrap();

        let network = config.stack(&tensors, &Default::default()).unwrap();
        let mut grads = config.zero_gradients();
        grads.values_mut().for_each(|grad| grad.fill(f32::NAN));
        let by_pull = |logits: &[f32], dlogits: &mut [f32]| {
            dlogits.copy_from_slice(&pull);
            logits.iter().zip(&pull).map(|(a, b)| a * b).sum()
        };
        let mut room = Room::default();
        let (value, _) = network.gradients(&ids[..time], by_pull, 0.0, &mut grads, &mut room).unwrap();
        let expected = loss.to_scalar::<f32>().unwrap();
        assert!((value - expected).abs() < 1e-3 * expected.abs().max(1.0), "{value} {expected}");
        assert_eq!(grads.len(), vars.len());
        for (name, var) in vars {
            // What no gradient reaches stays as it is.
            let zero = || var.zeros_like().unwrap();
            let expected = defined.get(&var).cloned().unwrap_or_else(zero).flatten_all().unwrap();
            let found = Tensor::new(grads[&name].as_slice(), &Device::Cpu).unwrap();
            let size: f32 = expected.abs().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap();
            let far = (found - expected).unwrap().abs().unwrap().max(0).unwrap();
            let far = far.to_scalar::<f32>().unwrap();
            assert!(far <= 1e-3 * size, "{name} of {time} tokens: {far} of {size}");
        }
    }
}
