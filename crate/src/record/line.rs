//! The flat form of a reading: one line of a run.

use super::{COLUMNS, Provenance, Reading};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`: a reading with the run it belongs to and its provenance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the meaning of the columns.
    #[serde(default)]
    pub schema_version: u32,
    /// Id of the run, also the name of its folder.
    #[serde(default)]
    pub run_id: String,
    /// When the reading was recorded, UTC.
    #[serde(default)]
    pub timestamp: String,
    /// Commit, machine, library versions. Declared before the reading, so that its values do not take them.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// Subject, conditions and values.
    #[serde(flatten)]
    pub reading: Reading,
}

impl Record {
    /// The record as one line of JSON, newline included.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn to_line(&self) -> Result<String> {
        let fields = serde_json::to_value(self).map_err(Error::internal)?;
        let serde_json::Value::Object(fields) = fields else {
            return Err(Error::internal("a record is no object"));
        };
        // The schema's columns first and in its order, then the values by name.
        let values = fields.keys().map(String::as_str).filter(|name| !COLUMNS.contains(name));
        let mut values: Vec<&str> = values.collect();
        values.sort_unstable();
        let mut line = String::from("{");
        for name in COLUMNS.iter().copied().chain(values) {
            if let Some(value) = fields.get(name) {
                let comma = if line.len() > 1 { "," } else { "" };
                line.push_str(&format!("{comma}{}:{value}", serde_json::Value::from(name)));
            }
        }
        line.push_str("}\n");
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Row;
    use super::*;

    #[test]
    fn every_column_is_written_in_the_order_of_the_schema() {
        let line = Record::default().to_line().unwrap();
        let places: Vec<_> = COLUMNS.iter().map(|column| line.find(&format!("\"{column}\":"))).collect();
        assert!(places.iter().all(Option::is_some), "{line}");
        assert!(places.is_sorted(), "{line}");
        let fields: Row = serde_json::from_str(&line).unwrap();
        assert_eq!(fields.len(), COLUMNS.len(), "a field of the record is missing in COLUMNS");
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), Record::default());
    }

    #[test]
    fn a_record_comes_back_whole() {
        let reading = Reading::default().value("window_nll", vec![1.5, 2.5]).value("correct", 1);
        let record = Record { provenance: Provenance::gather(), reading, ..Record::default() };
        let back: Record = serde_json::from_str(&record.to_line().unwrap()).unwrap();
        assert_eq!(back, record);
    }
}
