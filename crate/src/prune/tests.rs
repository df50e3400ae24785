use super::*;
use crate::family::{
    bamba, falcon_h1, gla, granitemoehybrid, hybrid, itera, llama, lowrankq, mamba2, nemotron_h,
};
use crate::model::Positions;

/// A text that models can be judged on.
fn calibration(folder: &tempfile::TempDir) -> Calibration {
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "Less is left, and what is left is whole. ".repeat(40)).unwrap();
    Calibration { samples: 4, length: 32, ..Calibration::of(file) }
}

fn models() -> Vec<Model> {
    let itera = itera::Config {
        vocab_size: 256,
        hidden_size: 24,
        num_layers: 3,
        expert_size: 16,
        moe_layers: vec![0, 2],
        max_seq_length: 64,
        ..itera::Config::default()
    };
    let llama = llama::Config {
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 3,
        head_dim: 8,
        attention_bias: true,
        mlp_bias: true,
        ..llama::Config::default()
    };
    let mamba = mamba2::Config {
        hidden_size: 24,
        num_hidden_layers: 2,
        num_heads: 6,
        head_dim: 8,
        ..Default::default()
    };
    let mamba_of =
        || hybrid::Mamba { mamba_n_heads: 6, mamba_d_head: 8, mamba_d_state: 16, ..Default::default() };
    let heads_of = || hybrid::Heads {
        num_attention_heads: 6,
        num_key_value_heads: 3,
        head_dim: 8,
        ..Default::default()
    };
    let granite = granitemoehybrid::Config {
        hidden_size: 24,
        mamba: mamba_of(),
        heads: heads_of(),
        layer_types: vec![granitemoehybrid::Layer::Mamba, granitemoehybrid::Layer::Attention],
        intermediate_size: 16,
        shared_intermediate_size: 24,
        ..Default::default()
    };
    let bamba = bamba::Config {
        hidden_size: 24,
        num_hidden_layers: 2,
        attn_layer_indices: vec![1],
        mamba: mamba_of(),
        heads: heads_of(),
        intermediate_size: 24,
        mlp_bias: true,
        ..Default::default()
    };
    let falcon = falcon_h1::Config {
        hidden_size: 24,
        num_hidden_layers: 2,
        mamba: mamba_of(),
        heads: heads_of(),
        intermediate_size: 24,
        ..Default::default()
    };
    let nemotron = nemotron_h::Config {
        hidden_size: 24,
        mamba: mamba_of(),
        heads: heads_of(),
        intermediate_size: 24,
        experts: nemotron_h::Experts {
            moe_intermediate_size: 16,
            moe_shared_expert_intermediate_size: 24,
            ..Default::default()
        },
        ..Default::default()
    };
    let gla = gla::Config {
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 3,
        num_heads: 6,
        num_kv_heads: 3,
        expand_k: 1.0,
        expand_v: 2.0,
        attn: Some(gla::Hybrid {
            layers: vec![1],
            num_heads: 6,
            num_kv_heads: 3,
            qkv_bias: true,
            rope_theta: 1e4,
        }),
        ..gla::Config::tiny()
    };
    let lowrankq = lowrankq::Config {
        model_dim: 24,
        num_layers: 3,
        num_heads: 6,
        num_kv_heads: 3,
        mlp_hidden: 40,
        q_rank: lowrankq::Rank::Layers(vec![8, 0, 12]),
        bigram_vocab_size: 32,
        bigram_dim: 8,
        ..Default::default()
    };
    [
        Config::IteraLite(itera),
        Config::Llama(llama),
        Config::Mamba2(mamba),
        Config::Granitemoehybrid(granite),
        Config::Bamba(bamba),
        Config::FalconH1(falcon),
        Config::NemotronH(nemotron),
        Config::Gla(gla),
        Config::LowrankQ(lowrankq),
    ]
    .map(|config| Model::random("whole", config, 3, &Loading::default()).unwrap())
    .into()
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..20).map(|i| i * 37 % 256).collect();
    let logits = model.forward(&model.tokens(&ids).unwrap(), None, Positions::All).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn what_is_left_is_smaller_by_the_share_that_was_asked_for_and_loads_again() {
    let folder = tempfile::tempdir().unwrap();
    for model in models() {
        for by in [Importance::Magnitude, Importance::Use, Importance::Gradient, Importance::Loss] {
            let how = Pruning {
                keep: 0.8,
                by,
                multiple: 4,
                calibration: calibration(&folder),
                ..Pruning::default()
            };
            let Pruned { model: left, report } = model.pruned(&how).unwrap();
            let [before, after] = report.parameters;
            assert_eq!((before, after), (model.parameters(), left.parameters()));
            let share = after as f64 / before as f64;
            assert!((0.6..=0.8).contains(&share), "{} by {by}: {share}", model.config.family());
            assert!(left.bytes() < model.bytes() && logits(&left).iter().all(|x| x.is_finite()));
            // The same again, and the same from a file.
            assert_eq!(model.pruned(&how).unwrap().model.hash, left.hash);
            let path = folder.path().join(format!("{}-{by}", model.config.family()));
            left.save(&path).unwrap();
            let again = Model::load(path.to_str().unwrap()).unwrap();
            assert_eq!(again.config, left.config);
            assert_eq!(logits(&again), logits(&left));
            let packed = again.quantized(&"w8a8".parse().unwrap()).unwrap();
            assert!(logits(&packed).iter().all(|x| x.is_finite()));
        }
    }
}

/// Parts whose output is zero change nothing when they go, and go first.
#[test]
fn parts_that_give_nothing_go_first_and_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    for model in models() {
        let groups = model.config.groups();
        let mut tensors = model.tensors().clone();
        // Without the mixer of a state space: its step is a mean over channels, its norm one over heads.
        let is_apart = |group: &&Group| match group.kind {
            Kind::Channel => true,
            Kind::Head => group.setting == "num_key_value_heads",
            Kind::Expert | Kind::Inner => false,
        };
        let silent: Vec<&Group> = groups.iter().filter(is_apart).filter(|group| group.at < 2).collect();
        if silent.is_empty() {
            continue;
        }
        for (path, range) in silent.iter().flat_map(|group| &group.read) {
            let name = format!("{path}.weight");
            let cols = tensors[&name].dim(1).unwrap();
            let kept: Vec<f32> = (0..cols).map(|c| if range.contains(&c) { 0.0 } else { 1.0 }).collect();
            let kept = candle_core::Tensor::from_vec(kept, cols, &candle_core::Device::Cpu).unwrap();
            let weight = tensors[&name].broadcast_mul(&kept).unwrap();
            tensors.insert(name, weight);
        }
        let model =
            Model::from_tensors("silent", model.config.clone(), tensors, &Loading::default()).unwrap();
        let size: usize = silent.iter().map(|group| cut::size(model.tensors(), group)).sum();
        let keep = 1.0 - 0.95 * size as f64 / model.parameters() as f64;
        for by in [Importance::Use, Importance::Gradient] {
            let kinds = vec![Kind::Channel, Kind::Head];
            let how = Pruning { keep, by, kinds, multiple: 1, calibration: calibration(&folder) };
            let left = model.pruned(&how).unwrap().model;
            let far =
                logits(&model).iter().zip(logits(&left)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-5, "{} by {by}: {far}", model.config.family());
        }
    }
}

#[test]
fn an_expert_that_is_never_chosen_goes_whole() {
    let folder = tempfile::tempdir().unwrap();
    let model = models().swap_remove(0);
    let mut tensors = model.tensors().clone();
    // LayerNorm's bias of 1 on channel 0, and weights that send nothing to expert 2.
    for layer in [0, 2] {
        let bias = (0..24).map(|c| if c == 0 { 50.0 } else { 0.0 }).collect::<Vec<f32>>();
        let bias = candle_core::Tensor::from_vec(bias, 24, &candle_core::Device::Cpu).unwrap();
        tensors.insert(format!("layers.{layer}.moe.layer.norm.bias"), bias);
        let gate = format!("layers.{layer}.moe.layer.router.gate.weight");
        let mut rows = tensors[&gate].to_vec2::<f32>().unwrap();
        rows.iter_mut().enumerate().for_each(|(e, row)| row[0] = if e == 2 { -1.0 } else { 0.0 });
        tensors.insert(gate, candle_core::Tensor::new(rows, &candle_core::Device::Cpu).unwrap());
    }
    let model = Model::from_tensors("idle", model.config.clone(), tensors, &Loading::default()).unwrap();
    let groups = model.config.groups();
    let idle = groups.iter().filter(|group| group.kind == Kind::Expert && group.at == 2);
    let size: usize = idle.map(|group| cut::size(model.tensors(), group)).sum();
    let keep = 1.0 - size as f64 / model.parameters() as f64;
    let kinds = vec![Kind::Expert];
    let how = Pruning { keep, kinds, by: Importance::Use, multiple: 1, calibration: calibration(&folder) };
    let Pruned { model: left, report } = model.pruned(&how).unwrap();
    assert_eq!(report.left.iter().map(|left| (left.of, left.left)).collect::<Vec<_>>(), [(4, 3), (4, 3)]);
    assert_eq!(logits(&model), logits(&left));
    // As many stay as see a token.
    let error = model.pruned(&Pruning { keep: 0.1, ..how }).unwrap_err().to_string();
    assert!(error.contains("of the parameters can be left out"), "{error}");
}

#[test]
fn what_cannot_be_pruned_is_told() {
    let model = models().swap_remove(1);
    let sentence = |model: &Model, how: Pruning| model.pruned(&how).unwrap_err().to_string();
    assert!(
        sentence(&model, Pruning { keep: 1.5, ..Pruning::default() })
            .contains("keep is a share between 0 and 1")
    );
    let experts = Pruning { kinds: vec![Kind::Expert], ..Pruning::default() };
    assert!(sentence(&model, experts).contains("a llama has no experts that could be left out"));
    let packed = model.quantized(&"w8a8".parse().unwrap()).unwrap();
    assert!(sentence(&packed, Pruning::default()).contains("a quantized model is not pruned"));
    // Heads of several groups: one would be left with fewer than another.
    let Config::Mamba2(one) = models().swap_remove(2).config else { panic!("a Mamba2") };
    let config = Config::Mamba2(mamba2::Config { n_groups: 2, ..one });
    let grouped = Model::random("grouped", config, 3, &Loading::default()).unwrap();
    assert!(sentence(&grouped, Pruning::default()).contains("nothing can be left out of a mamba2 whole"));
    assert!(
        "weight"
            .parse::<Importance>()
            .unwrap_err()
            .to_string()
            .contains("known are magnitude, use, gradient, loss")
    );
}
