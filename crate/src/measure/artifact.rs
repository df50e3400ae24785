//! How small a model gets as one compressed file: its exact bytes, and what the entropy of its codes comes down to; see
//! [`model::artifact`](crate::model::artifact).

use super::instrument::{Listed, Table};
use super::{Measure, subject};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::record::{Conditions, Reading, fingerprint};
use serde_json::json;
use std::time::Instant;

settings! {
    /// Exact bytes of the model as one compressed file, and the entropy of its codes.
    #[derive(Default)]
    pub struct Artifact {
        /// Bytes that count beside the file, such as those of a contest's code.
        #[arg(long, value_name = "BYTES")]
        pub beside: u64,
    }
}

impl Measure for Artifact {
    const NAME: &'static str = "artifact";
    const VERSION: u32 = 2;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        fingerprint(Self::NAME, Self::VERSION, &json!({"beside": self.beside}), &subject(model), &"")
    }

    fn check(&self, model: &Model) -> Result<()> {
        match &model.quantization {
            Some(report) if report.backend == crate::model::quantization::Backend::Fake => {
                Err(Error::input("a simulated quantization has no codes to pack")
                    .hint("leave --simulate out"))
            }
            _ => Ok(()),
        }
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let clock = Instant::now();
        let packed = model.artifact()?;
        let codes = Some(packed.codes).filter(|codes| *codes > 0);
        let bytes = packed.bytes.len() as u64;
        let row = Reading::new(Self::NAME, Self::VERSION, &subject(model), &Conditions::default())
            .fingerprint(&self.fingerprint(model)?)
            .value("artifact_bytes", bytes)
            .value("total_bytes", bytes + self.beside)
            .value("raw_bytes", packed.raw)
            .value("zstd_bytes", packed.plain)
            .value("range_bytes", packed.ranged)
            .value("codes", codes)
            .value("entropy_bytes", codes.map(|_| packed.entropy))
            .value("bits_per_code", codes.map(|codes| 8.0 * packed.entropy / codes as f64))
            .value("runtime_s", clock.elapsed().as_secs_f64());
        Ok(vec![row])
    }
}

impl Listed for Artifact {
    const TABLES: &'static [Table] = &[Table::of(
        "artifact",
        &[
            "model",
            "scheme",
            "weight_bytes",
            "artifact_bytes",
            "total_bytes",
            "zstd_bytes",
            "range_bytes",
            "entropy_bytes",
            "bits_per_code",
        ],
    )];

    fn work(&self, model: &Model) -> f64 {
        // Compression at its highest level takes about as long as reading a thousand tokens.
        (model.bytes() as f64 / 1e6).max(1.0) * 1000.0
    }

    fn small(&mut self) {}
}
