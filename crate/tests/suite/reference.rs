//! Mamba2 written a second time, in f64 and plain loops, token by token: slow, and too simple to be wrong in the same way.

use lowbit::family::{Tensors, mamba2::Config};

/// Named tensors in f64.
struct Weights<'a>(&'a Tensors);

impl Weights<'_> {
    fn get(&self, name: &str) -> Vec<f64> {
        let tensor = self.0[name].to_dtype(candle_core::DType::F64).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn layer(&self, layer: usize, name: &str) -> Vec<f64> {
        self.get(&format!("backbone.layers.{layer}.{name}"))
    }

    /// W x + b, W [out, in].
    fn linear(&self, layer: usize, name: &str, x: &[f64], bias: bool) -> Vec<f64> {
        let w = self.layer(layer, &format!("{name}.weight"));
        let mut y: Vec<f64> =
            w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        if bias {
            let b = self.layer(layer, &format!("{name}.bias"));
            y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
        }
        y
    }
}

fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(w).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The logits after every token of one sequence.
pub fn logits(c: &Config, tensors: &Tensors, tokens: &[u32]) -> Vec<Vec<f64>> {
    let w = Weights(tensors);
    let (heads, p, n, g, k) = (c.num_heads, c.head_dim, c.state_size, c.n_groups, c.conv_kernel);
    let inner = heads * p;
    let embedding = w.get("backbone.embeddings.weight");
    let mut stream: Vec<Vec<f64>> =
        tokens.iter().map(|t| embedding[*t as usize * c.hidden_size..][..c.hidden_size].to_vec()).collect();
    for layer in 0..c.num_hidden_layers {
        let (conv, a_log, dt_bias, d) = (
            w.layer(layer, "mixer.conv1d.weight"),
            w.layer(layer, "mixer.A_log"),
            w.layer(layer, "mixer.dt_bias"),
            w.layer(layer, "mixer.D"),
        );
        let conv_bias =
            if c.use_conv_bias { w.layer(layer, "mixer.conv1d.bias") } else { vec![0.0; inner + 2 * g * n] };
        let mut past: Vec<Vec<f64>> = vec![vec![0.0; inner + 2 * g * n]; k];
        let mut h = vec![0.0; heads * p * n];
        for x in &mut stream {
            let u = rms_norm(x, &w.layer(layer, "norm.weight"), c.layer_norm_epsilon);
            let all = w.linear(layer, "mixer.in_proj", &u, c.use_bias);
            let (z, rest) = all.split_at(inner);
            let (xbc, dt) = rest.split_at(inner + 2 * g * n);
            past.remove(0);
            past.push(xbc.to_vec());
            let xbc: Vec<f64> = (0..xbc.len())
                .map(|i| silu(conv_bias[i] + (0..k).map(|j| conv[i * k + j] * past[j][i]).sum::<f64>()))
                .collect();
            let mut y = vec![0.0; inner];
            for head in 0..heads {
                let step =
                    (dt[head] + dt_bias[head]).exp().ln_1p().clamp(c.time_step_limit.0, c.time_step_limit.1);
                let decay = (-a_log[head].exp() * step).exp();
                let group = head * g / heads;
                let (b, cc) = (&xbc[inner + group * n..][..n], &xbc[inner + (g + group) * n..][..n]);
                for i in 0..p {
                    let value = xbc[head * p + i];
                    y[head * p + i] = d[head] * value;
                    for j in 0..n {
                        let h = &mut h[(head * p + i) * n + j];
                        *h = decay * *h + step * value * b[j];
                        y[head * p + i] += *h * cc[j];
                    }
                }
            }
            let gated: Vec<f64> = y.iter().zip(z).map(|(y, z)| y * silu(*z)).collect();
            let weight = w.layer(layer, "mixer.norm.weight");
            let size = inner / g;
            let normed: Vec<f64> = (0..g)
                .flat_map(|i| {
                    rms_norm(&gated[i * size..][..size], &weight[i * size..][..size], c.layer_norm_epsilon)
                })
                .collect();
            let out = w.linear(layer, "mixer.out_proj", &normed, c.use_bias);
            x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
        }
    }
    let head = if c.tie_word_embeddings { embedding } else { w.get("lm_head.weight") };
    let norm = w.get("backbone.norm_f.weight");
    stream
        .iter()
        .map(|x| {
            let x = rms_norm(x, &norm, c.layer_norm_epsilon);
            head.chunks(x.len()).map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum()).collect()
        })
        .collect()
}
