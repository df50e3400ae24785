//! Cases, each on one thread and on all, and the table that they end in.

use crate::ceilings::{Ceilings, reading};
use criterion::{Criterion, SamplingMode};
use lowbit::record::{Conditions, Reading, Run, Subject};
use lowbit::stats::Summary;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::Value;
use std::time::Instant;

/// Timed samples of a case.
pub const SAMPLES: usize = 10;

/// What one run of a case takes at least, and which ceiling it meets.
#[derive(Clone, Copy)]
pub enum Bound {
    /// Bytes read, or written, once; the ceiling is a loop that reads as many.
    Bytes(usize),
    /// Operations in f32: a multiplication and an addition are two.
    Float(usize),
    /// Operations on bf16 operands.
    Bf16(usize),
    /// Operations on integers of 8 bits.
    Int8(usize),
}

/// What a case is, beside its name: columns of its record.
pub type About<'a> = [(&'a str, Value)];

/// A case on one number of threads.
struct Timed {
    /// Of a run.
    seconds: Summary,
    /// Of the median, in amounts of the bound a second.
    speed: f64,
    /// The most that this speed can be.
    ceiling: f64,
}

struct Row {
    name: String,
    about: Vec<(String, Value)>,
    bound: Bound,
    /// By number of threads.
    timed: Vec<Timed>,
}

/// All that was timed.
pub struct Table {
    criterion: Criterion,
    pools: Vec<ThreadPool>,
    ceilings: Vec<Ceilings>,
    rows: Vec<Row>,
}

impl Table {
    /// Measures the ceilings: on one thread, and on all if there are more.
    pub fn new(criterion: Criterion) -> Self {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let counts = if all > 1 { vec![1, all] } else { vec![1] };
        let pool =
            |count| ThreadPoolBuilder::new().num_threads(count).build().expect("threads can be started");
        let pools: Vec<ThreadPool> = counts.into_iter().map(pool).collect();
        let ceilings = pools.iter().map(Ceilings::measure).collect();
        Self { criterion, pools, ceilings, rows: vec![] }
    }

    /// Times what `set_up` returns. Nothing is called for a name that was not asked for. `set_up` panics if a result is
    /// not what its definition says.
    pub fn case<R: FnMut() + Send>(
        &mut self,
        name: &str,
        bound: impl FnOnce() -> Bound,
        set_up: impl Fn() -> R + Sync,
    ) {
        self.case_about(name, &[], bound, set_up);
    }

    /// [`case`](Self::case) of which more is recorded than its name.
    pub fn case_about<R: FnMut() + Send>(
        &mut self,
        name: &str,
        about: &About<'_>,
        bound: impl FnOnce() -> Bound,
        set_up: impl Fn() -> R + Sync,
    ) {
        let mut found = vec![];
        for pool in &self.pools {
            let (mut ready, mut samples) = (None, vec![]);
            let mut group = self.criterion.benchmark_group(name);
            group.sampling_mode(SamplingMode::Flat);
            group.bench_function(format!("{} threads", pool.current_num_threads()), |bencher| {
                let run = ready.get_or_insert_with(|| pool.install(&set_up));
                bencher.iter_custom(|count| {
                    let elapsed = pool.install(|| {
                        let clock = Instant::now();
                        (0..count).for_each(|_| run());
                        clock.elapsed()
                    });
                    samples.push(elapsed.as_secs_f64() / count as f64);
                    elapsed
                });
            });
            group.finish();
            // The first ones warmed up.
            found.extend(Summary::of(&samples[samples.len().saturating_sub(SAMPLES)..]));
        }
        if found.len() < self.pools.len() {
            return; // not asked for
        }
        let bound = bound();
        let of_pools = found.into_iter().zip(self.pools.iter().zip(&self.ceilings));
        let timed = of_pools.map(|(seconds, (pool, ceilings))| {
            let ceiling = match bound {
                Bound::Bytes(count) => reading(pool, count),
                _ => bound.ceiling(ceilings),
            };
            Timed { seconds, speed: bound.amount() / seconds.median, ceiling }
        });
        let timed = timed.collect();
        let about = about.iter().map(|(column, value)| (column.to_string(), value.clone())).collect();
        self.rows.push(Row { name: name.to_string(), about, bound, timed });
    }

    /// Prints ceilings and rows; the rate and the share are those of the median.
    pub fn print(&self) {
        let threads = self.pools.iter().map(ThreadPool::current_num_threads);
        let head: Vec<String> =
            threads.map(|count| format!(" ms on {count}: best / median | rate | share |")).collect();
        println!("\n| case |{}", head.concat());
        println!("|---|{}", "---|---|---|".repeat(head.len()));
        for (what, of) in Ceilings::EACH {
            let cells =
                self.ceilings.iter().map(|ceilings| format!(" | {} | |", rate(of, of.ceiling(ceilings))));
            println!("| *most: {what}* |{}", cells.collect::<String>());
        }
        for Row { name, bound, timed, .. } in &self.rows {
            let cells = timed.iter().map(|Timed { seconds: Summary { min, median, .. }, speed, ceiling }| {
                let share = 100.0 * speed / ceiling;
                format!(" {:.3} / {:.3} | {} | {share:.0} % |", min * 1e3, median * 1e3, rate(*bound, *speed))
            });
            println!("| {name} |{}", cells.collect::<String>());
        }
    }

    /// Records every case in a new run of this name: a row `case` for each number of threads.
    ///
    /// # Errors
    /// If the run cannot be written.
    pub fn record(&self, name: &str) -> lowbit::Result<()> {
        let run = Run::create(name)?;
        let subject = Subject {
            model: "kernels".into(),
            family: "kernels".into(),
            dtype: "f32".into(),
            scheme: "f32".into(),
            device: "cpu".into(),
            ..Subject::default()
        };
        let mut readings = vec![];
        for Row { name, about, bound, timed } in &self.rows {
            for (pool, Timed { seconds, speed, ceiling }) in self.pools.iter().zip(timed) {
                let threads = Some(pool.current_num_threads() as u64);
                let conditions = Conditions { threads, ..Conditions::default() };
                let reading = Reading::new("kernel", 1, &subject, &conditions)
                    .row("case")
                    .value("case", name.as_str())
                    .value("bound", bound.name())
                    .value("samples", SAMPLES)
                    .value("seconds_min", seconds.min)
                    .value("seconds_median", seconds.median)
                    .value(bound.column(), speed / 1e9)
                    .value("ceiling", ceiling / 1e9)
                    .value("share", speed / ceiling);
                let with = |reading: Reading, (column, value): &(String, Value)| match value {
                    Value::String(text) => reading.value(column, text.as_str()),
                    value => reading.value(column, value.as_u64()),
                };
                readings.push(about.iter().fold(reading, with));
            }
        }
        run.record(&readings)?;
        run.finish()?;
        println!("recorded in {}", run.path().display());
        Ok(())
    }
}

impl Bound {
    /// What the case is bound by, as records say it.
    fn name(self) -> &'static str {
        match self {
            Self::Bytes(_) => "bytes",
            Self::Float(_) => "f32",
            Self::Bf16(_) => "bf16",
            Self::Int8(_) => "int8",
        }
    }

    /// The column of the median's rate.
    fn column(self) -> &'static str {
        if matches!(self, Self::Bytes(_)) { "gb_per_s" } else { "gop_per_s" }
    }

    fn amount(self) -> f64 {
        let (Self::Bytes(n) | Self::Float(n) | Self::Bf16(n) | Self::Int8(n)) = self;
        n as f64
    }

    fn ceiling(self, ceilings: &Ceilings) -> f64 {
        match self {
            Self::Bytes(_) => ceilings.memory,
            Self::Float(_) => ceilings.float,
            Self::Bf16(_) => ceilings.bf16,
            Self::Int8(_) => ceilings.int8,
        }
    }
}

fn rate(bound: Bound, speed: f64) -> String {
    let unit = if matches!(bound, Bound::Bytes(_)) { "GB/s" } else { "Gop/s" };
    format!("{:.1} {unit}", speed / 1e9)
}
