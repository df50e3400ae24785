//! Which parts of a model break first: one layer, matrix or segment rounded at a time, the rest as it is.
//!
//! The harm of a part is the rise of the mean NLL on the same tokens, beside the divergence from the base, which moves
//! with far fewer tokens. Cheaper numbers claim to know it beforehand (SQNR, the Hessian of the layer's outputs,
//! gradients); a [`ranking`] says how far each is right.
//!
//! | file | holds |
//! |---|---|
//! | `sweep` | reading a text for many units without reading it from its beginning each time |
//! | [`ranking`] | Kendall's τ of each predictor |
//! | [`choice`] | a scheme of mixed widths from what was measured |

pub mod choice;
pub mod ranking;
mod sweep;

use super::gradient::Gradients;
use super::instrument::{Listed, Table};
use super::{Measure, finite, recalled, subject, work};
use crate::error::{Error, Result};
use crate::kernel::softmax::Divergence;
use crate::model::Model;
use crate::progress::Progress;
use crate::quantize::probe::{Grain, Probe, Rounding, Unit};
use crate::quantize::{Calibration, Quantizing, Scheme};
use crate::record::{Reading, Row, Run, SUMMARY, fingerprint};
use crate::stats::Interval;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;
use sweep::Sweep;

settings! {
    /// Which parts break first: each layer, matrix or segment rounded alone, and what would have told it beforehand.
    pub struct Sensitivity {
        /// Schemes of which one part at a time is applied, such as w3a16 or w3a16+head=w3.
        #[arg(long, value_delimiter = ',')]
        pub schemes: Vec<String>,
        /// How finely the model is taken apart: layer, matrix or segment.
        #[arg(long)]
        pub grain: Grain,
    }
    (pieces) {
        /// The text that predictors are computed on, and schemes that need one are calibrated; its windows are no longer than
        /// those that are read.
        #[arg(skip)]
        pub calibration: Calibration,
        /// How intervals are found.
        #[arg(skip)]
        pub interval: Interval,
    }
}

impl Default for Sensitivity {
    fn default() -> Self {
        Self {
            schemes: vec!["w3a16+head=w3".to_string()],
            grain: Grain::Segment,
            corpus: PathBuf::from("data/corpus"),
            // Not the one that choices made from it are judged on.
            split: Some("valid".to_string()),
            seq_len: 1024,
            max_tokens: Some(32_768),
            calibration: Calibration { samples: 64, ..Calibration::default() },
            interval: Interval::default(),
        }
    }
}

impl Sensitivity {
    /// The sensitivity to these schemes, or to those of these names, each part alone.
    pub fn to<S: ToString>(schemes: impl IntoIterator<Item = S>) -> Self {
        let schemes = schemes.into_iter().map(|scheme| scheme.to_string()).collect();
        Self { schemes, ..Self::default() }
    }

    /// Sets how finely the model is taken apart.
    #[must_use]
    pub fn by(mut self, grain: Grain) -> Self {
        self.grain = grain;
        self
    }

    /// In windows no longer than those that are read: what fits the model there, fits it here.
    fn calibration(&self) -> Calibration {
        let length = self.calibration.length.min(self.seq_len);
        Calibration { length, ..self.calibration.clone() }
    }

    fn quantizing(&self) -> Quantizing {
        Quantizing { calibration: self.calibration(), ..Quantizing::default() }
    }

    /// Gives what `known` does not know to `take`, unit by unit, the ranking of each scheme last; `recall` gives the
    /// rows of the units that are known.
    fn sweep(
        &self,
        model: &Model,
        known: impl Fn(&str) -> bool,
        recall: impl Fn(&[String]) -> Result<Vec<Row>>,
        mut take: impl FnMut(&[Reading]) -> Result<()>,
    ) -> Result<()> {
        self.check(model)?;
        for unit in self.units() {
            if !known(&unit.fingerprint(model)?) {
                Probing::new(&unit, model)?.run(&known, &recall, &mut take)?;
            }
        }
        Ok(())
    }

    fn identity(&self, model: &Model, corpus: &str, calibration: &str, unit: &str) -> Result<String> {
        let settings = json!({
            "windows": self.reads().identity(), "schemes": self.schemes, "grain": self.grain,
            "interval": self.interval,
        });
        let extra = json!({"corpus": corpus, "calibration": calibration, "unit": unit});
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &extra)
    }
}

impl Measure for Sensitivity {
    const NAME: &'static str = "sensitivity";
    const VERSION: u32 = 2;

    /// One a scheme. Within it every part of the model is recorded by itself; the ranking closes it.
    fn units(&self) -> Vec<Self> {
        self.schemes.iter().map(|scheme| Self { schemes: vec![scheme.clone()], ..self.clone() }).collect()
    }

    /// That of the rankings, which are recorded last.
    fn fingerprint(&self, model: &Model) -> Result<String> {
        let calibration = self.calibration().sample(model)?.about.to_string();
        self.identity(model, &self.reads().text()?.sha256, &calibration, "")
    }

    fn check(&self, model: &Model) -> Result<()> {
        self.reads().cut(model)?;
        self.interval.check()?;
        if self.schemes.is_empty() {
            return Err(Error::input("no scheme is named whose parts could be tried").hint("such as w3a16"));
        }
        self.calibration().sample(model)?;
        for name in &self.schemes {
            let scheme: Scheme = name.parse()?;
            Probe::check(&scheme)?;
            scheme.check(model, &self.quantizing())?;
        }
        Ok(())
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        let mut all = vec![];
        self.sweep(
            model,
            |_| false,
            |_| Ok(vec![]),
            |readings| {
                all.extend_from_slice(readings);
                Ok(())
            },
        )?;
        Ok(all)
    }

    // Parts of the model are units of work, which only the model knows.
    fn record(&self, model: &Model, run: &Run) -> Result<()> {
        self.sweep(model, |unit| run.has(unit), |units| recalled(run, units), |readings| run.record(readings))
    }
}

impl Listed for Sensitivity {
    const TABLES: &'static [Table] = &[
        Table::of(
            "sensitivity",
            &[
                "model",
                "probe",
                "unit",
                "delta_nll",
                "delta_nll_low",
                "delta_nll_high",
                "kl",
                "hessian",
                "fisher",
            ],
        ),
        Table::of(
            ranking::NAME,
            &[
                "model",
                "probe",
                "units",
                "predictor",
                "tau",
                "tau_low",
                "tau_high",
                "blocks_read",
                "blocks_whole",
            ],
        ),
    ];

    fn gives(&self) -> Vec<(&'static str, u32)> {
        vec![(Self::NAME, Self::VERSION), (ranking::NAME, Self::VERSION)]
    }

    fn check_scheme(&self, scheme: &Scheme) -> Result<()> {
        match scheme.is_plain() {
            true => Ok(()),
            false => Err(Error::input("the parts of a quantized model cannot be quantized alone")
                .at(format!("scheme {scheme}"))
                .hint(
                    "measure the sensitivity of f32 or bf16, and name this scheme among those that it is measured to",
                )),
        }
    }

    fn work(&self, model: &Model) -> f64 {
        let sites = model.config.sites();
        let parts = match self.grain {
            Grain::Layer => model.config.layers(),
            Grain::Matrix => sites.len(),
            Grain::Segment => sites.iter().map(|site| site.segments.len().max(1)).sum(),
        };
        // A part is read on from its own layer, on average from the middle.
        let read = work::text(&self.reads(), model) * (1.0 + parts as f64 / 2.0);
        let calibrated = self.calibration.samples as f64 * self.calibration().length as f64;
        let passes = (work::CALIBRATED + work::DIFFERENTIATED) as f64;
        self.schemes.len() as f64 * (read + calibrated * passes)
    }

    fn small(&mut self) {
        self.max_tokens = Some(2048);
        self.schemes.truncate(3);
        self.calibration.samples = 8;
    }
}

/// One scheme under way on one model.
struct Probing<'a> {
    settings: &'a Sensitivity,
    model: &'a Model,
    probe: Probe,
    text: super::window::Excerpt,
    calibration: crate::quantize::calibrate::Sample,
}

impl<'a> Probing<'a> {
    fn new(settings: &'a Sensitivity, model: &'a Model) -> Result<Self> {
        let scheme = settings.schemes[0].parse()?;
        Ok(Self {
            settings,
            model,
            probe: Probe::new(model, &scheme, &settings.quantizing(), settings.grain)?,
            text: settings.reads().cut(model)?,
            calibration: settings.calibration().sample(model)?,
        })
    }

    fn identity(&self, unit: &str) -> Result<String> {
        let calibration = self.calibration.about.to_string();
        self.settings.identity(self.model, &self.text.corpus.sha256, &calibration, unit)
    }

    fn row(&self, measure: &str, fingerprint: &str) -> Reading {
        let conditions = self.settings.reads().conditions();
        Reading::new(measure, Sensitivity::VERSION, &subject(self.model), &conditions)
            .fingerprint(fingerprint)
            .value("probe", self.settings.schemes[0].as_str())
            .value("grain", json!(self.settings.grain))
    }

    fn run(
        &self,
        known: &impl Fn(&str) -> bool,
        recall: &impl Fn(&[String]) -> Result<Vec<Row>>,
        take: &mut impl FnMut(&[Reading]) -> Result<()>,
    ) -> Result<()> {
        let identities =
            self.probe.units().iter().map(|unit| self.identity(&unit.pattern)).collect::<Result<Vec<_>>>()?;
        let inputs = self.probe.inputs(&self.calibration)?;
        let gradients = Gradients::of(self.probe.base(), &self.calibration)?;
        let clock = Instant::now();
        let mut sweep = Sweep::new(self.probe.base(), &self.text)?;
        let mut overhead = clock.elapsed().as_secs_f64();
        let (mut rows, mut read) = (recall(&identities)?, sweep.own_blocks());
        let progress = Progress::new("sensitivity", identities.len() as u64, "units");
        for (unit, identity) in self.probe.units().iter().zip(&identities) {
            read += sweep.blocks(unit);
            if !known(identity) {
                let clock = Instant::now();
                let changed = self.probe.with(unit)?;
                let tokens = sweep.divergence(&changed, unit)?;
                let runtime = clock.elapsed().as_secs_f64();
                let reading = self.row(Sensitivity::NAME, identity);
                let reading = self.harm(self.describe(reading, unit), &tokens)?;
                let predicted =
                    gradients.as_ref().map(|gradients| gradients.predict(&self.probe.changes(unit)?));
                let reading = self
                    .predictors(reading, self.probe.rounding(unit, &inputs)?, predicted.transpose()?)
                    .value("blocks_read", sweep.blocks(unit));
                let reading = self.text.describe(reading, runtime + std::mem::take(&mut overhead));
                let told = finite::told(vec![reading], &[("", &changed)], finite::windows(&self.text))?;
                rows.extend(told.iter().map(|reading| reading.values.clone()));
                take(&told)?;
            }
            progress.tick(1)?;
        }
        let identity = self.identity("")?;
        let layers = self.model.config.layers();
        let mut ranked = ranking::rank(&rows, || self.row(ranking::NAME, &identity));
        // Each unit and the base once, each from the first block to the last.
        let whole = (rows.len() + 1) * layers;
        let runtime = rows.iter().filter_map(|row| row.get("runtime_s")?.as_f64()).sum::<f64>();
        if let Some(summary) = ranked.iter_mut().find(|row| row.row == SUMMARY) {
            *summary = self.text.describe(
                summary
                    .clone()
                    .value("units", rows.len())
                    .value("blocks_read", read)
                    .value("blocks_whole", whole),
                runtime,
            );
        }
        take(&ranked)
    }

    /// Which unit it is.
    fn describe(&self, reading: Reading, unit: &Unit) -> Reading {
        reading
            .value("unit", unit.pattern.as_str())
            .value("layer", unit.layer)
            .value("part", unit.part.as_str())
            .value("format", unit.coding().map(|coding| coding.to_string()))
    }

    /// What it does to predictions, in nats a token.
    fn harm(&self, reading: Reading, tokens: &[Divergence]) -> Result<Reading> {
        let rise: Vec<f64> = tokens.iter().map(|token| token.nll - token.reference_nll).collect();
        let kl: Vec<f64> = tokens.iter().map(|token| token.kl).collect();
        let estimate = |values: &[f64]| {
            let found = self.settings.interval.mean(values, &self.text.documents());
            found.ok_or_else(|| Error::internal("no token was compared"))
        };
        let (rise, kl) = (estimate(&rise)?, estimate(&kl)?);
        let reference: f64 = tokens.iter().map(|token| token.reference_nll).sum();
        Ok(reading
            .value("delta_nll", rise.value)
            .value("delta_nll_low", rise.low)
            .value("delta_nll_high", rise.high)
            .value("delta_nll_p", rise.p)
            .value("kl", kl.value)
            .value("delta_nll_blocks", rise.blocks)
            .value("kl_low", if kl.low < 0.0 { 0.0 } else { kl.low })
            .value("kl_high", kl.high)
            .value("reference_nll", reference / tokens.len() as f64))
    }

    /// What was to be known beforehand. SQNR in decibel, ‖ΔW X‖² a token, gradients in nats a token.
    fn predictors(&self, reading: Reading, rounding: Rounding, predicted: Option<(f64, f64)>) -> Reading {
        let decibel = |(signal, noise): (f64, f64)| 10.0 * (signal / noise).log10();
        let tokens = (self.calibration.windows.len() * self.calibration.about.length) as f64;
        reading
            .value("n_weights", rounding.weights)
            .value("unit_bytes", rounding.bytes)
            .value("weight_sqnr_db", decibel(rounding.weight))
            .value("output_sqnr_db", decibel(rounding.output))
            .value("hessian", rounding.output.1 / tokens)
            .value("gradient", predicted.map(|(first, _)| first))
            .value("fisher", predicted.map(|(_, second)| second))
    }
}

#[cfg(test)]
mod tests;
