//! Records as a table: a polars `DataFrame` with the few verbs that figures need.
//!
//! ```no_run
//! # fn main() -> lowbit::Result<()> {
//! use lowbit::frame::Frame;
//! let recall = Frame::load("passkey-all")?.mean("correct", ["scheme", "context_length"])?;
//! println!("{recall}");
//! # Ok(())
//! # }
//! ```

mod columns;
mod comparison;
mod load;
mod subject;
pub(crate) mod table;

pub use comparison::{Compared, Comparison, Keys};

use crate::error::{Error, Result};
use crate::record::{Record, Row};
use polars::prelude::{
    AnyValue, ChunkCompareEq, Column, DataFrame, DataType, IntoLazy, SortMultipleOptions, col,
};
use serde_json::Value;

/// A table of records: one row a reading, one column a field. Cloning it copies no data.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    data: DataFrame,
    warnings: Vec<String>,
    /// The rows that these were filtered from: whoever looks at one length of many has chosen it among all.
    whole: Option<DataFrame>,
}

/// Any table of polars: for figures of what was computed from records.
impl From<DataFrame> for Frame {
    fn from(data: DataFrame) -> Self {
        Self { data, ..Self::default() }
    }
}

impl Frame {
    /// The table of these records.
    ///
    /// # Errors
    /// If a record cannot be written as JSON.
    pub fn from_records(records: &[Record]) -> Result<Self> {
        let rows = records.iter().map(|record| match serde_json::to_value(record) {
            Ok(Value::Object(row)) => Ok(row),
            Ok(_) => Err(Error::internal("a record is no object")),
            Err(e) => Err(Error::internal(e)),
        });
        Self::from_rows(&rows.collect::<Result<Vec<_>>>()?)
    }

    /// The table of these rows; a row without some column has null there.
    ///
    /// A column that holds integers in some rows and fractions in others is one of fractions; one that mixes
    /// text with something else is one of text. Lists of numbers stay lists. Numbers that are not finite, which JSON has no
    /// spelling for, are numbers again. Models of one name that are not the same are named with their hashes, and
    /// [`warnings`](Self::warnings) says so.
    ///
    /// # Errors
    /// If polars refuses the columns.
    pub fn from_rows(rows: &[Row]) -> Result<Self> {
        let (rows, warnings) = subject::tell_apart(rows);
        Ok(Self { data: columns::data_frame(&rows)?, warnings, whole: None })
    }

    /// The polars table itself, for everything that this type has no verb for.
    pub fn data(&self) -> &DataFrame {
        &self.data
    }

    /// What was left out or looked odd while loading, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Names of the columns.
    pub fn columns(&self) -> Vec<String> {
        self.data.get_column_names().iter().map(ToString::to_string).collect()
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.data.height()
    }

    /// Whether there is a column of this name that holds at least one value.
    pub fn has(&self, name: &str) -> bool {
        self.data.column(name).is_ok_and(|column| column.null_count() < column.len())
    }

    /// The rows whose `column` equals `value`, in their order.
    ///
    /// # Errors
    /// If there is no such column; the error names those with similar names.
    pub fn filter(&self, column: &str, value: impl Into<Value>) -> Result<Self> {
        let column = self.column(column)?;
        let mask = match (value.into(), column.dtype()) {
            (Value::String(text), DataType::String) => column.str()?.equal(text.as_str()),
            (Value::Bool(truth), DataType::Boolean) => {
                column.bool()?.iter().map(|v| v == Some(truth)).collect()
            }
            (Value::Number(number), dtype) if dtype.is_primitive_numeric() => {
                let number = number.as_f64().unwrap_or(f64::NAN);
                column.cast(&DataType::Float64)?.f64()?.equal(number)
            }
            (Value::Null, _) => column.is_null(),
            // A value of another type than the column's equals none of it.
            _ => column.is_null() & column.is_not_null(),
        };
        Ok(self.part(self.data.filter(&mask)?))
    }

    /// The rows whose `column`, as text, is one of `values`, in their order.
    ///
    /// # Errors
    /// If there is no such column; the error names those with similar names.
    pub fn filter_any<S: AsRef<str>>(
        &self,
        column: &str,
        values: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let values: Vec<String> = values.into_iter().map(|value| value.as_ref().to_string()).collect();
        let mask =
            self.texts(column)?.into_iter().map(|text| Some(text.is_some_and(|text| values.contains(&text))));
        Ok(self.part(self.data.filter(&mask.collect())?))
    }

    /// The rows whose `column` holds a number above 0: those that a logarithmic axis can show.
    ///
    /// # Errors
    /// If there is no such column, or it holds no numbers.
    pub fn above_zero(&self, column: &str) -> Result<Self> {
        let mask =
            self.numbers(column)?.into_iter().map(|value| Some(value.is_some_and(|value| value > 0.0)));
        Ok(self.with(self.data.filter(&mask.collect())?))
    }

    /// Only these columns, in this order.
    ///
    /// # Errors
    /// If one does not exist; the error names those with similar names.
    pub fn select<S: AsRef<str>>(&self, columns: impl IntoIterator<Item = S>) -> Result<Self> {
        let columns = columns.into_iter().map(|name| self.column(name.as_ref()).cloned());
        Ok(self.with(DataFrame::new(self.height(), columns.collect::<Result<_>>()?)?))
    }

    /// Mean of `column` for each combination of the `keys`, sorted by the keys. Rows without a value are left out.
    ///
    /// # Errors
    /// If a column does not exist, or `column` holds no numbers.
    pub fn mean<S: AsRef<str>>(&self, column: &str, keys: impl IntoIterator<Item = S>) -> Result<Self> {
        let numeric = self.column(column)?.dtype();
        if !numeric.is_primitive_numeric() && *numeric != DataType::Boolean {
            return Err(Error::input(format!("column `{column}` holds no numbers, but {numeric}")));
        }
        let keys: Vec<String> = keys.into_iter().map(|key| key.as_ref().to_string()).collect();
        keys.iter().try_for_each(|key| self.column(key).map(|_| ()))?;
        let known = self.data.clone().lazy().filter(col(column).is_not_null());
        let by: Vec<_> = keys.iter().map(|key| col(key.as_str())).collect();
        let means = known.group_by_stable(by.clone()).agg([col(column).mean()]);
        let sorted = means.sort_by_exprs(by, SortMultipleOptions::default().with_maintain_order(true));
        Ok(self.with(sorted.collect()?))
    }

    /// The numbers of a column, `None` where a row has none.
    ///
    /// # Errors
    /// If there is no such column, or it holds no numbers.
    pub fn numbers(&self, column: &str) -> Result<Vec<Option<f64>>> {
        let found = self.column(column)?;
        let dtype = found.dtype();
        if !dtype.is_primitive_numeric() && !matches!(dtype, DataType::Boolean | DataType::Null) {
            return Err(Error::input(format!("column `{column}` holds no numbers, but {dtype}")));
        }
        Ok(found.cast(&DataType::Float64)?.f64()?.iter().collect())
    }

    /// The values of a column as text, `None` where a row has none.
    ///
    /// # Errors
    /// If there is no such column.
    pub fn texts(&self, column: &str) -> Result<Vec<Option<String>>> {
        let found = self.column(column)?;
        let texts = found.as_materialized_series().iter().map(|value| match value {
            AnyValue::Null => None,
            value => Some(value.str_value().into_owned()),
        });
        Ok(texts.collect())
    }

    /// The lists of numbers of a column, `None` where a row has none; what is no number in a list is NaN.
    ///
    /// # Errors
    /// If there is no such column, or it holds no lists.
    pub fn lists(&self, column: &str) -> Result<Vec<Option<Vec<f64>>>> {
        let found = self.column(column)?;
        if !matches!(found.dtype(), DataType::List(_) | DataType::Null) {
            return Err(Error::input(format!("column `{column}` holds no lists, but {}", found.dtype())));
        }
        let lists = found.as_materialized_series().iter().map(|value| match value {
            AnyValue::List(list) => {
                Ok(Some(list.f64()?.iter().map(|value| value.unwrap_or(f64::NAN)).collect()))
            }
            _ => Ok(None),
        });
        lists.collect()
    }

    /// This frame with one more column of text, or one replaced.
    ///
    /// # Errors
    /// If its length is not the frame's height.
    pub fn with_texts(&self, name: &str, texts: &[String]) -> Result<Self> {
        let mut data = self.data.clone();
        data.with_column(Column::new(name.into(), texts))?;
        Ok(self.with(data))
    }

    fn column(&self, name: &str) -> Result<&Column> {
        self.data.column(name).map_err(|_| {
            let error = Error::input(format!("there is no column `{name}`"));
            match columns::nearest(name, &self.columns()) {
                near if near.is_empty() => error.hint("`columns()` lists those there are"),
                near => error.hint(format!("did you mean {}?", near.join(" or "))),
            }
        })
    }

    /// The records that this frame's rows were chosen from by [`filter`](Self::filter) and
    /// [`filter_any`](Self::filter_any); the frame itself where none was left out.
    pub(crate) fn whole(&self) -> Self {
        self.with(self.whole.clone().unwrap_or_else(|| self.data.clone()))
    }

    /// Some of the rows.
    fn part(&self, data: DataFrame) -> Self {
        let whole = self.whole.clone().unwrap_or_else(|| self.data.clone());
        Self { whole: Some(whole), ..self.with(data) }
    }

    /// Another table made from this one.
    fn with(&self, data: DataFrame) -> Self {
        Self { data, warnings: self.warnings.clone(), whole: None }
    }
}

impl From<polars::prelude::PolarsError> for Error {
    fn from(error: polars::prelude::PolarsError) -> Self {
        Error::internal(error.to_string().lines().next().unwrap_or("table operation failed"))
    }
}

#[cfg(test)]
mod tests;
