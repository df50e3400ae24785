//! The heads whose states are followed, and what is told of them.

use super::super::power::Power;
use super::super::watch::{Watched, given};
use crate::error::Result;
use crate::family::stack::Recurring;
use crate::kernel::round::fake_state;
use crate::layer::op::with_floats;
use crate::layer::state::State;
use crate::model::Model;
use crate::progress::Progress;
use crate::record::Reading;
use crate::stats::{Kendall, kendall, largest, quantile};
use crate::threads::install;
use candle_core::{DType, Device, Tensor};

/// One head of one layer.
struct Head {
    layer: usize,
    head: usize,
    /// Its state against the reference's, at each position.
    drift: Vec<Power>,
    /// The reference's state rounded once, where the scheme rounds it.
    rounding: Power,
    /// Share of the state that it keeps, from the weights alone and as measured on a text: one, or one for each channel of
    /// its keys.
    decays: [Vec<f64>; 2],
}

impl Head {
    /// Its mean decay: from the weights alone, and as measured.
    fn decay(&self) -> [f64; 2] {
        self.decays.each_ref().map(|decays| mean(decays.iter().copied(), decays.len()))
    }

    /// √(1 / (1 − d²)): from the weights alone, and with the measured decay. Of several channels, over which the noise is
    /// spread evenly, the root of the mean square.
    fn gains(&self) -> [f64; 2] {
        let square = |d: &f64| 1.0 / (1.0 - d * d);
        self.decays.each_ref().map(|decays| mean(decays.iter().map(square), decays.len()).sqrt())
    }

    /// The drift over the positions from `first` on.
    fn settled(&self, first: usize) -> f64 {
        let mut all = Power::default();
        self.drift[first..].iter().for_each(|power| all.join(*power));
        all.relative()
    }

    /// How many times that of the first token.
    fn growth(&self, first: usize) -> Option<f64> {
        let start = self.drift[0].relative();
        (start != 0.0).then(|| self.settled(first) / start)
    }
}

/// All that is gathered.
pub(super) struct Seen {
    positions: Vec<usize>,
    heads: Vec<Head>,
}

impl Seen {
    pub fn new(reference: &Model, positions: Vec<usize>) -> Result<Self> {
        let mut heads = vec![];
        for Recurring { layer, recurrence, .. } in reference.recurrences() {
            let decays = recurrence.at_rest()?.to_vec2::<f32>()?; // [H, A]
            heads.extend(decays.into_iter().enumerate().map(|(head, decays)| {
                let decays: Vec<f64> = decays.into_iter().map(f64::from).collect();
                Head {
                    layer,
                    head,
                    drift: vec![Power::default(); positions.len()],
                    rounding: Power::default(),
                    decays: [decays.clone(), decays],
                }
            }));
        }
        Ok(Self { heads, positions })
    }

    /// Index of the first position of the last two octaves, over which the drift has settled.
    fn first_settled(&self) -> usize {
        let last = self.positions[self.positions.len() - 1];
        self.positions.iter().position(|position| 4 * position >= last).unwrap_or(0)
    }

    /// Lets both models read a piece from position to position, and compares their states there.
    pub fn follow(
        &mut self,
        reference: &Model,
        model: &Model,
        ids: &[u32],
        bits: Option<u8>,
        progress: &Progress,
    ) -> Result<()> {
        let (mut exact, mut found, mut read) = (reference.state(1)?, model.state(1)?, 0);
        let settled = self.first_settled();
        for at in 0..self.positions.len() {
            let next = &ids[read..self.positions[at]];
            read = self.positions[at];
            reference.prefill(next, &mut exact)?;
            model.prefill(next, &mut found)?;
            self.compare(&exact, &found, at, bits.filter(|_| at >= settled))?;
            progress.tick(next.len() as u64)?;
        }
        Ok(())
    }

    fn compare(&mut self, exact: &State, found: &State, at: usize, bits: Option<u8>) -> Result<()> {
        for (layer, (exact, found)) in exact.layers.iter().zip(&found.layers).enumerate() {
            let host = |state: &Tensor| state.to_device(&Device::Cpu)?.to_dtype(DType::F32);
            let mut heads = self.heads.iter_mut().filter(|head| head.layer == layer).peekable();
            if heads.peek().is_none() {
                continue;
            }
            let (exact, found) = (host(exact.recurrence()?)?, host(found.recurrence()?)?); // [1, H, ..]
            let size = exact.elem_count() / exact.dim(1)?;
            with_floats([&exact, &found], |[exact, found]| {
                for (head, (exact, found)) in heads.zip(exact.chunks(size).zip(found.chunks(size))) {
                    head.drift[at].add(exact, found);
                    if let Some(bits) = bits {
                        let mut once = exact.to_vec();
                        fake_state(&mut once, bits);
                        head.rounding.add(exact, &once);
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Measures the mean decays on a piece of text.
    pub fn forget(&mut self, reference: &Model, ids: &[u32]) -> Result<()> {
        let inputs = Watched::new(reference).inputs(ids)?;
        let linears = reference.linears();
        for Recurring { layer, entry, recurrence } in reference.recurrences() {
            let Some(input) = &inputs[entry] else { continue };
            let u = given(linears[entry].1, input)?;
            let decays = install(|| recurrence.decays(&u))?; // [T, H, A]
            let (time, heads, each) = decays.dims3()?;
            with_floats([&decays], |[decays]| {
                for head in self.heads.iter_mut().filter(|head| head.layer == layer) {
                    for (channel, decay) in head.decays[1].iter_mut().enumerate() {
                        let over = decays.iter().skip(head.head * each + channel).step_by(heads * each);
                        *decay = mean(over.map(|d| f64::from(*d)), time);
                    }
                }
            })?;
        }
        Ok(())
    }

    /// A row for each head, one for each position, and the summary.
    pub fn rows(&self, row: impl Fn() -> Reading) -> Vec<Reading> {
        let settled = self.first_settled();
        let rounded = |head: &Head| (head.rounding.signal != 0.0).then(|| head.rounding.relative());
        let heads = self.heads.iter().map(|head| {
            let ([gain, measured], [decay, decay_measured]) = (head.gains(), head.decay());
            let mut row = row()
                .row("head")
                .value("layer", head.layer)
                .value("head", head.head)
                .value("decay", decay)
                .value("decay_measured", decay_measured);
            if head.decays[0].len() > 1 {
                row = row
                    .value("channel_decays", head.decays[0].clone())
                    .value("channel_decays_measured", head.decays[1].clone());
            }
            row.value("gain", gain)
                .value("gain_measured", measured)
                .value("drift", head.settled(settled))
                .value("growth", head.growth(settled))
                .value("rounding", rounded(head))
                .value("predicted", rounded(head).map(|rounding| rounding * measured))
                .value("positions", self.positions.clone())
                .value("drift_at", head.drift.iter().map(|power| power.relative()).collect::<Vec<_>>())
        });
        let positions = self.positions.iter().enumerate().map(|(at, position)| {
            let drifts = sorted(self.heads.iter().map(|head| head.drift[at].relative()));
            let mut whole = Power::default();
            self.heads.iter().for_each(|head| whole.join(head.drift[at]));
            row()
                .row("position")
                .value("position", *position)
                .value("drift_median", quantile(&drifts, 0.5))
                .value("drift_q25", quantile(&drifts, 0.25))
                .value("drift_q75", quantile(&drifts, 0.75))
                .value("drift_max", quantile(&drifts, 1.0))
                .value("drift_all", whole.relative())
        });
        heads.chain(positions).chain([self.summary(row())]).collect()
    }

    fn summary(&self, row: Reading) -> Reading {
        let settled = self.first_settled();
        let each = |f: &dyn Fn(&Head) -> f64| self.heads.iter().map(f).collect::<Vec<_>>();
        let drifts = each(&|head| head.settled(settled));
        let most = largest(drifts.iter().copied());
        let worst = self
            .heads
            .iter()
            .zip(&drifts)
            .rev()
            .find(|(_, drift)| most.is_some_and(|most| drift.total_cmp(&most).is_eq()));
        let worst = worst.map(|(head, _)| head);
        let growths: Option<Vec<f64>> = self.heads.iter().map(|head| head.growth(settled)).collect();
        let gains = [0, 1].map(|i| each(&|head| head.gains()[i]));
        let ratio = sorted(
            self.heads
                .iter()
                .filter(|head| head.rounding.noise != 0.0)
                .map(|head| head.settled(settled) / (head.rounding.relative() * head.gains()[1])),
        );
        let middle = |values: &[f64]| quantile(&sorted(values.iter().copied()), 0.5);
        let mut row = row
            .value("heads", self.heads.len())
            .value("drift_median", middle(&drifts))
            .value("drift_max", most)
            .value("worst_layer", worst.map(|head| head.layer))
            .value("worst_head", worst.map(|head| head.head))
            .value("growth_median", growths.as_deref().and_then(middle))
            .value("gain_median", middle(&gains[0]))
            .value("gain_max", quantile(&sorted(gains[0].iter().copied()), 1.0))
            .value("gain_measured_median", middle(&gains[1]))
            .value("gain_measured_max", quantile(&sorted(gains[1].iter().copied()), 1.0))
            .value("drift_to_predicted", quantile(&ratio, 0.5));
        for (name, gains) in [("tau", &gains[0]), ("tau_measured", &gains[1])] {
            row = ranked(row, name, kendall(gains, &drifts));
            let growth = growths.as_deref().and_then(|growths| kendall(gains, growths));
            row = ranked(row, &format!("{name}_growth"), growth);
        }
        row
    }
}

/// The mean of so many values.
fn mean(values: impl Iterator<Item = f64>, count: usize) -> f64 {
    values.sum::<f64>() / count as f64
}

/// Adds a τ with its interval.
fn ranked(row: Reading, name: &str, found: Option<Kendall>) -> Reading {
    row.value(name, found.map(|found| found.tau))
        .value(&format!("{name}_low"), found.map(|found| found.low))
        .value(&format!("{name}_high"), found.map(|found| found.high))
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise of variance 1 in every value: that of each channel grows to 1 / (1 − d²), and the head's is their mean.
    #[test]
    fn the_gain_of_a_head_is_that_of_its_channels_together() {
        let head = |decays: &[f64]| Head {
            layer: 0,
            head: 0,
            drift: vec![],
            rounding: Power::default(),
            decays: [decays.to_vec(), vec![0.0; decays.len()]],
        };
        let several = head(&[0.5, 0.9, 0.99]);
        let mean = [0.5_f64, 0.9, 0.99].map(|d| 1.0 / (1.0 - d * d)).iter().sum::<f64>() / 3.0;
        assert!((several.gains()[0] - mean.sqrt()).abs() < 1e-12 && several.gains()[1] == 1.0);
        assert!((several.decay()[0] - 2.39 / 3.0).abs() < 1e-12);
        let alone = head(&[0.9]);
        assert_eq!((alone.gains()[0], alone.decay()[0]), ((1.0_f64 / (1.0 - 0.9 * 0.9)).sqrt(), 0.9));
    }
}
