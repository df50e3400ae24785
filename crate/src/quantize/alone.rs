//! Rows rounded one at a time: how far each alone moves the predictions of a text.

use super::calibrate::Sample;
use super::select::Part;
use crate::error::Result;
use crate::family::Site;
use crate::format::Coding;
use crate::layer::linear::Weight;
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::model::onward::{Onward, between};
use crate::progress::Progress;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// Windows that are read together.
const BATCH: usize = 16;

/// How many rows the parts in a format have.
pub(super) fn rows(parts: &[Vec<Part>], coding: Coding) -> usize {
    parts.iter().flatten().filter(|part| part.coding == Some(coding)).map(|part| part.rows).sum()
}

/// Of each row of the parts in a format the mean divergence KL(p ‖ q), in nats a token of the sample, of the model with that row alone in
/// `bits` bits from the model as it is, both in f32; by the names of tensors, 0 for their other rows.
///
/// # Errors
/// If the model cannot read the tokens, or it is interrupted.
pub(super) fn divergences(
    model: &Model,
    sample: &Sample,
    (sites, parts): (&[Site], &[Vec<Part>]),
    coding: Coding,
    bits: u8,
) -> Result<BTreeMap<String, Vec<f64>>> {
    let model = model.cast(DType::F32)?;
    let windows: Vec<&[u32]> = sample.in_order().map(|(_, ids)| ids.as_slice()).collect();
    let (mut onward, mut reference) = (Onward::windows(&model, &windows, BATCH)?, vec![]);
    onward.ends(&model, Some(0), |_, end| {
        reference.push(end);
        Ok(())
    })?;
    let layers = model.config.layers();
    let mut order: Vec<usize> = (0..sites.len()).collect();
    order.sort_by_key(|i| sites[*i].first_reader(layers));
    let progress = Progress::new("rows", rows(parts, coding) as u64, "rows");
    let mut all = BTreeMap::new();
    for i in order {
        let Site { cols, weight, path, .. } = &sites[i];
        let mut found = vec![0.0; sites[i].rows];
        let whole = model.linears()[i].1.weight.values()?.contiguous()?;
        let values = with_floats([&whole], |[values]| values.to_vec())?;
        for part in parts[i].iter().filter(|part| part.coding == Some(coding)) {
            for (row, kl) in found.iter_mut().enumerate().skip(part.first).take(part.rows) {
                let own = row * cols..(row + 1) * cols;
                let rounded = coding.encode_rows(&values[own.clone()], 1, *cols, &[bits]);
                let mut values = values.clone();
                values[own].copy_from_slice(&rounded.map_err(|error| error.at(path))?.decode());
                let mut changed = model.clone();
                let values = Tensor::from_vec(values, whole.dims(), &Device::Cpu)?;
                changed.linears_mut()[i].1.weight = Weight::Dense(values);
                let (mut sum, mut count) = (0.0, 0);
                onward.ends(&changed, sites[i].first_reader(layers), |batch, end| {
                    let tokens = end.dim(0)? * end.dim(1)?;
                    let apart = between((&model, &reference[batch]), (&changed, &end), &vec![0; tokens])?;
                    sum += apart.iter().map(|token| token.kl).sum::<f64>();
                    count += tokens;
                    Ok(())
                })?;
                *kl = sum / count.max(1) as f64;
                progress.tick(1)?;
            }
        }
        all.insert(weight.clone(), found);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::tests::calibration;
    use super::super::{Quantizing, Scheme, select};
    use super::*;
    use crate::family::{Config, lowrankq};
    use crate::model::Positions;

    /// A model with few rows, and a short text.
    fn small(folder: &tempfile::TempDir) -> (Model, Quantizing) {
        let config = lowrankq::Config {
            model_dim: 16,
            num_layers: 2,
            num_heads: 2,
            num_kv_heads: 1,
            mlp_hidden: 24,
            q_rank: lowrankq::Rank::All(4),
            bigram_vocab_size: 32,
            bigram_dim: 8,
            ..Default::default()
        };
        let mut how = calibration(folder);
        (how.calibration.samples, how.calibration.length) = (3, 40);
        (Model::random("small", Config::LowrankQ(config), 5, &Default::default()).unwrap(), how)
    }

    fn logits(model: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
        let logits = model.forward(&model.tokens(ids).unwrap(), None, Positions::All).unwrap();
        logits.squeeze(0).unwrap().to_vec2().unwrap()
    }

    /// KL(p ‖ q) of the distributions of two rows of logits.
    fn kl(p: &[f32], q: &[f32]) -> f64 {
        let [p, q] = [p, q].map(|logits| -> Vec<f64> {
            let sum: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
            logits.iter().map(|z| f64::from(*z) - sum.ln()).collect()
        });
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    }

    #[test]
    fn a_row_alone_moves_what_a_model_with_that_row_rounded_moves() {
        let folder = tempfile::tempdir().unwrap();
        let (model, how) = small(&folder);
        let (sample, sites) = (how.calibration.sample(&model).unwrap(), model.config.sites());
        let scheme: Scheme = "w2a16-sf16+head=w2-sf16+bigram=keep".parse().unwrap();
        let (parts, coding) = (select::parts(&scheme, &sites).unwrap(), scheme.weights.unwrap());
        let all = divergences(&model, &sample, (&sites, &parts), coding, 2).unwrap();
        assert_eq!(all.len(), sites.len());
        for (i, site) in sites.iter().enumerate() {
            let row = site.rows / 2;
            let found = all[&site.weight][row];
            if parts[i].iter().all(|part| part.coding.is_none()) {
                assert_eq!(found, 0.0, "{}", site.path);
                continue;
            }
            let mut values = model.tensors()[&site.weight].to_vec2::<f32>().unwrap();
            values[row] = coding.encode_rows(&values[row], 1, site.cols, &[2]).unwrap().decode();
            let mut tensors = model.tensors().clone();
            tensors.insert(site.weight.clone(), Tensor::new(values, &Device::Cpu).unwrap());
            let other =
                Model::from_tensors("other", model.config.clone(), tensors, &Default::default()).unwrap();
            let each = sample.windows.iter().flat_map(|(_, ids)| {
                logits(&model, ids).into_iter().zip(logits(&other, ids)).map(|(p, q)| kl(&p, &q))
            });
            let each: Vec<f64> = each.collect();
            let expected = each.iter().sum::<f64>() / each.len() as f64;
            assert!((found - expected).abs() < 1e-2 * expected + 5e-8, "{}: {found} {expected}", site.path);
        }
    }

    #[test]
    fn widths_follow_what_was_measured_and_the_mean() {
        let folder = tempfile::tempdir().unwrap();
        let (model, how) = small(&folder);
        let made = |scheme: &str| model.quantized_with(&scheme.parse().unwrap(), &how).unwrap();
        let (by_row, uniform) = (made("w4a16-sf16-rowskl"), made("w4a16-sf16"));
        let bytes = |model: &Model| model.artifact().unwrap().bytes.len();
        assert!(bytes(&by_row) <= bytes(&uniform));
        let narrow = made("w4a16-sf16-rowskl3.5");
        let bits = narrow.quantization.as_ref().unwrap().w_bits.unwrap();
        assert!(bits <= 3.5 && bits > 2.5, "{bits}");
        // As many readings of the text as rows are rounded, and one of the model as it is.
        let sample = how.calibration.sample(&model).unwrap();
        let scheme: Scheme = "w4a16-sf16".parse().unwrap();
        let parts = select::parts(&scheme, &model.config.sites()).unwrap();
        let read = (1 + rows(&parts, scheme.weights.unwrap())) as u64 * sample.tokens();
        assert_eq!(narrow.made.unwrap().whole.tokens, read);
    }
}
