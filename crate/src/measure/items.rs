//! Measurements that put one item after another to a model, as tasks are measured that models are compared by.
//!
//! Each item is a row, so that two schemes are compared item by item. A part of the items is recorded as soon as it is done
//! and skipped when the run is resumed; a summary of all closes the measurement.

use super::likelihood::{Likelihood, Pair};
use super::{Measure, finite, recalled, subject};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::progress::Progress;
use crate::record::{Conditions, NONFINITE, PART, Reading, Row, Run, fingerprint};
use crate::stats::{Z95, wilson};
use crate::warning::warn;
use serde_json::{Value, json};
use std::time::Instant;

/// Items of a part.
const ITEMS: usize = 64;

/// A context, and what may follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// The file's name and the line.
    pub name: String,
    pub context: String,
    /// Each with the blank that separates it from the context.
    pub continuations: Vec<String>,
    /// The index of the right one.
    pub gold: usize,
}

/// The items of a file.
pub(super) struct Items {
    /// The name of the file, as records hold it.
    pub title: String,
    pub sha256: String,
    pub all: Vec<Item>,
}

/// What a model made of an item.
pub(super) struct Answered {
    pub likelihoods: Vec<Likelihood>,
    /// Whether they come of logits that are numbers.
    pub known: bool,
}

/// A measurement by items: what such measurements have in common is done by the functions below, which `by_items!` makes a
/// [`Measure`] of.
pub(super) trait Asking: Measure {
    /// Name and version of the measurement.
    const IS: (&'static str, u32);

    /// The items of the file, those that are asked for.
    fn items(&self) -> Result<Items>;

    /// Adds to the row of an item what came of it.
    fn describe(&self, reading: Reading, item: &Item, answered: &Answered) -> Reading;

    /// Adds to the summary what the rows of all items say together.
    fn summarize(&self, reading: Reading, rows: &[Row]) -> Reading;
}

/// Makes a [`Measure`] of each of these that asks items.
macro_rules! by_items {
    ($($module:ident::$settings:ident),*) => {$(
        impl Measure for $module::$settings {
            const NAME: &'static str = <Self as items::Asking>::IS.0;
            const VERSION: u32 = <Self as items::Asking>::IS.1;

            /// Within it the items are recorded in parts.
            fn units(&self) -> Vec<Self> {
                vec![self.clone()]
            }

            fn fingerprint(&self, model: &Model) -> Result<String> {
                items::identity(self, model)
            }

            fn check(&self, model: &Model) -> Result<()> {
                items::check(self, model)
            }

            fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
                items::measure(self, model)
            }

            fn record(&self, model: &Model, run: &Run) -> Result<()> {
                items::record(self, model, run)
            }
        }
    )*};
}

/// A list of a measurement's items, of which the first are asked for.
pub(super) fn first<T>(mut all: Vec<T>, most: Option<usize>) -> Result<Vec<T>> {
    match most {
        Some(0) => return Err(Error::input("items must be at least 1, found 0")),
        Some(most) => all.truncate(most),
        None => {}
    }
    Ok(all)
}

/// Refuses a file that is not named.
pub(super) fn named(file: &std::path::Path, looks: &str) -> Result<()> {
    match file.as_os_str().is_empty() {
        true => Err(Error::input("no file is named whose items could be asked")
            .hint(format!("name one as corpus (--corpus FILE): its lines look like {looks}"))),
        false => Ok(()),
    }
}

/// As [`Measure::fingerprint`]: that of the summary, which is recorded last.
pub(super) fn identity<M: Asking>(task: &M, model: &Model) -> Result<String> {
    unit(model, &task.items()?, "all", (M::NAME, M::VERSION))
}

/// The unit of work of some of the items; how many there are in all is part of what the summary is of.
fn unit(model: &Model, items: &Items, part: &str, (name, version): (&str, u32)) -> Result<String> {
    let settings = json!({"items": items.all.len(), "part": part});
    fingerprint(name, version, &settings, &subject(model), &items.sha256)
}

/// As [`Measure::check`]: refuses items that cannot be asked.
pub(super) fn check<M: Asking>(task: &M, model: &Model) -> Result<()> {
    model.tokenizer.present()?;
    task.items()?.all.iter().try_for_each(|item| pairs(model, item).map(drop))
}

fn pairs(model: &Model, item: &Item) -> Result<Vec<Pair>> {
    let each = item.continuations.iter().map(|continuation| Pair::of(model, &item.context, continuation));
    each.collect::<Result<_>>().map_err(|error| error.at(&item.name))
}

/// As [`Measure::measure`].
pub(super) fn measure<M: Asking>(task: &M, model: &Model) -> Result<Vec<Reading>> {
    let mut all = vec![];
    let keep = |readings: &[Reading]| {
        all.extend_from_slice(readings);
        Ok(())
    };
    sweep(task, model, |_| false, |_| Ok(vec![]), keep)?;
    Ok(all)
}

/// As [`Measure::record`].
pub(super) fn record<M: Asking>(task: &M, model: &Model, run: &Run) -> Result<()> {
    sweep(task, model, |unit| run.has(unit), |units| recalled(run, units), |readings| run.record(readings))
}

/// Gives what `known` does not know to `take`, part by part, the summary last; `recall` gives the rows of known parts.
fn sweep<M: Asking>(
    task: &M,
    model: &Model,
    known: impl Fn(&str) -> bool,
    recall: impl Fn(&[String]) -> Result<Vec<Row>>,
    mut take: impl FnMut(&[Reading]) -> Result<()>,
) -> Result<()> {
    let items = task.items()?;
    let whole = unit(model, &items, "all", (M::NAME, M::VERSION))?;
    let parts = items.all.chunks(ITEMS).zip((0..).step_by(ITEMS)).map(|(part, start)| {
        let name = format!("{start}..{}", start + part.len());
        Ok((part, start, unit(model, &items, &name, (M::NAME, M::VERSION))?))
    });
    let parts = parts.collect::<Result<Vec<_>>>()?;
    // Of a measurement that is there, the parts are asked for too: they hold.
    let units = parts.iter().map(|(.., unit)| unit.clone());
    let there: Vec<String> = units.filter(|unit| known(unit)).collect();
    if known(&whole) {
        return Ok(());
    }
    let progress = Progress::new(M::NAME, items.all.len() as u64, "items");
    let (before, mut rows) = (recall(&there)?, vec![]);
    for (part, start, unit) in &parts {
        if there.contains(unit) {
            let own = |row: &&Row| row.get("fingerprint").and_then(Value::as_str) == Some(unit);
            rows.extend(before.iter().filter(own).cloned());
            progress.tick(part.len() as u64)?;
        } else {
            let readings = ask(task, model, (part, *start), &items, unit, &progress)?;
            rows.extend(readings.iter().map(values));
            take(&readings)?;
        }
    }
    let (closing, rows): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row["row"] == PART);
    take(&summary(task, model, &items, &whole, &closing, &rows)?)
}

/// What a reading has in common with a row that was read back.
fn values(reading: &Reading) -> Row {
    let mut row = reading.values.clone();
    row.insert("row".into(), reading.row.as_str().into());
    row
}

/// The rows of a part, and the one that closes it.
fn ask<M: Asking>(
    task: &M,
    model: &Model,
    (part, start): (&[Item], usize),
    items: &Items,
    unit: &str,
    progress: &Progress,
) -> Result<Vec<Reading>> {
    let row = || {
        Reading::new(M::NAME, M::VERSION, &subject(model), &conditions())
            .fingerprint(unit)
            .value("corpus_hash", items.sha256.as_str())
    };
    let (mut readings, mut lost, clock) = (vec![], (0, 0), Instant::now());
    for (item, index) in part.iter().zip(start..) {
        let pairs = pairs(model, item)?;
        let likelihoods: Vec<Likelihood> =
            pairs.iter().map(|pair| pair.likelihood(model)).collect::<Result<_>>()?;
        for pair in &pairs {
            lost = (lost.0 + pair.lost.0, lost.1 + pair.lost.1);
        }
        let known = likelihoods.iter().all(|found| !found.logprob.is_nan());
        let reading = row()
            .row("item")
            .value("item", index)
            .value("name", item.name.as_str())
            .value("cut_tokens", some(pairs.iter().map(|pair| pair.cut).max().unwrap_or_default()));
        readings.push(task.describe(reading, item, &Answered { likelihoods, known }));
        progress.tick(1)?;
    }
    readings.push(
        row()
            .row(PART)
            .value("items", part.len())
            .value("dropped_bytes", some(lost.0))
            .value("unknown_tokens", some(lost.1))
            .value("runtime_s", clock.elapsed().as_secs_f64()),
    );
    Ok(readings)
}

fn summary<M: Asking>(
    task: &M,
    model: &Model,
    items: &Items,
    unit: &str,
    parts: &[Row],
    rows: &[Row],
) -> Result<Vec<Reading>> {
    let sum = |name: &str| parts.iter().filter_map(|row| row.get(name)?.as_f64()).sum::<f64>();
    let [dropped, unknown] = ["dropped_bytes", "unknown_tokens"].map(|name| sum(name) as usize);
    let (title, tokenizer) = (&items.title, model.tokenizer.name());
    for (count, what) in [
        (dropped, "leaves out bytes, which nothing predicts"),
        (unknown, "has its token for the unknown for some tokens"),
    ] {
        if count > 0 {
            warn(format!("{title}: the tokenizer '{tokenizer}' {what}: {count}"));
        }
    }
    let cut = rows.iter().filter(|row| row.get("cut_tokens").is_some_and(Value::is_number)).count();
    let reading = Reading::new(M::NAME, M::VERSION, &subject(model), &conditions())
        .fingerprint(unit)
        .value("corpus", title.as_str())
        .value("corpus_hash", items.sha256.as_str())
        .value("items", rows.len())
        .value("cut_items", cut)
        .value("training_length", model.training_length)
        .value("dropped_bytes", some(dropped))
        .value("unknown_tokens", some(unknown))
        .value("runtime_s", sum("runtime_s"));
    let summary = task.summarize(reading, rows);
    // What is not a number is looked for in the items that it came of.
    let odd = rows.iter().filter(|row| row.keys().any(|name| name.ends_with(NONFINITE)));
    let odd = odd.filter_map(|row| items.all.get(row.get("item")?.as_u64()? as usize));
    let odd = odd.map(|item| pairs(model, item)).collect::<Result<Vec<_>>>()?.concat();
    finite::told(vec![summary], &[("", model)], odd.iter().map(|pair| pair.ids.as_slice()))
}

fn conditions() -> Conditions {
    Conditions {
        batch_size: Some(1),
        threads: Some(crate::threads::threads() as u64),
        ..Conditions::default()
    }
}

/// Bytes of all that is read, a context once for each of its continuations.
pub(super) fn bytes(items: &Items) -> usize {
    let of_item = |item: &Item| {
        let own: usize = item.continuations.iter().map(String::len).sum();
        item.context.len() * item.continuations.len() + own
    };
    items.all.iter().map(of_item).sum()
}

/// A count where there is one.
fn some(count: usize) -> Option<usize> {
    Some(count).filter(|count| *count > 0)
}

/// The share of the items that a column of zeros and ones passes, with Wilson's interval; unknown where it is not known of
/// one.
pub(super) fn share(reading: Reading, name: &str, rows: &[Row], column: &str) -> Reading {
    let passed: Vec<Option<u64>> = rows.iter().map(|row| row.get(column)?.as_u64()).collect();
    let (count, known) = (passed.iter().flatten().sum::<u64>(), passed.iter().all(Option::is_some));
    let (low, high) = wilson(count, rows.len() as u64, Z95);
    let value = |share: f64| finite::Known(share, known);
    reading
        .value(name, value(count as f64 / rows.len() as f64))
        .value(&format!("{name}_low"), value(low))
        .value(&format!("{name}_high"), value(high))
}
