//! How far what is rounded is from what is not.

use crate::kernel::scan::CHUNK;
use crate::kernel::scan::products::Products;
use crate::layer::meeting::{Meeting, Part};
use crate::record::Reading;
use crate::stats::largest;

/// What a block gives with nothing rounded.
pub(super) struct Exact {
    scores: Vec<f32>,
    /// Of chunks by themselves, and of the whole; none where softmax comes between.
    read: [Option<Vec<f32>>; 2],
}

const PARTS: [Part; 2] = [Part::Chunk, Part::Whole];

impl Exact {
    pub fn of(meeting: &Meeting, gates: bool) -> Self {
        let read = PARTS.map(|part| meeting.read(None, gates, part));
        Self { scores: meeting.scores(None, gates), read }
    }
}

/// Sums over pairs of values, for a cosine and a relative error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    product: f64,
    exact: f64,
    found: f64,
    error: f64,
}

impl Sums {
    fn add(&mut self, found: f32, exact: f32) {
        let (found, exact) = (f64::from(found), f64::from(exact));
        self.product += found * exact;
        self.exact += exact * exact;
        self.found += found * found;
        self.error += (found - exact) * (found - exact);
    }

    /// None where nothing was there.
    pub fn cosine(&self) -> Option<f64> {
        (self.exact > 0.0 && self.found > 0.0).then(|| self.product / (self.exact * self.found).sqrt())
    }

    /// ‖found − exact‖ / ‖exact‖.
    pub fn error(&self) -> Option<f64> {
        (self.exact > 0.0).then(|| (self.error / self.exact).sqrt())
    }
}

/// By head: scores between sub-chunks, and what chunks and the whole read.
#[derive(Default)]
pub(super) struct Apart {
    scores: Vec<Sums>,
    read: [Vec<Sums>; 2],
}

impl Apart {
    /// Adds a sequence.
    pub fn add(&mut self, meeting: &Meeting, exact: &Exact, products: Products, gates: bool) {
        // Values in FP8 have no part in scores.
        if products.scores.is_some() {
            let of = Products { fp8_values: false, ..products };
            let (found, sub) = (meeting.scores(Some(of), gates), usize::from(products.sub));
            self.scores.resize_with(meeting.heads, Sums::default);
            let rows = found.chunks_exact(CHUNK).zip(exact.scores.chunks_exact(CHUNK)).enumerate();
            for (i, (found, exact)) in rows {
                let before = i / meeting.heads % CHUNK / sub * sub;
                let sums = &mut self.scores[i % meeting.heads];
                found[..before].iter().zip(exact).for_each(|(found, exact)| sums.add(*found, *exact));
            }
        }
        for ((part, exact), sums) in PARTS.into_iter().zip(&exact.read).zip(&mut self.read) {
            let Some((exact, found)) = exact.as_ref().zip(meeting.read(Some(products), gates, part)) else {
                continue;
            };
            let heads = meeting.readers();
            sums.resize_with(heads, Sums::default);
            let width = exact.len() / (meeting.time * heads);
            for (i, (found, exact)) in found.chunks_exact(width).zip(exact.chunks_exact(width)).enumerate() {
                let sums = &mut sums[i % heads];
                found.iter().zip(exact).for_each(|(found, exact)| sums.add(*found, *exact));
            }
        }
    }

    /// The columns of a row: means over heads, and the worst head.
    pub fn describe(&self, mut row: Reading) -> Reading {
        let [chunk, whole] = &self.read;
        for (name, sums) in [("scores", &self.scores), ("chunk", chunk), ("whole", whole)] {
            row = row
                .value(&format!("cosine_{name}"), super::mean(sums.iter().filter_map(Sums::cosine)))
                .value(&format!("error_{name}"), super::mean(sums.iter().filter_map(Sums::error)));
        }
        let worst = largest(self.scores.iter().filter_map(Sums::cosine).map(|cosine| -cosine));
        row.value("cosine_scores_min", worst.map(|cosine| -cosine))
    }

    fn all(&self) -> [&[Sums]; 3] {
        let [chunk, whole] = &self.read;
        [&self.scores, chunk, whole]
    }
}

/// The columns of a summary: means over the heads of all blocks, and the worst of all.
pub(super) fn summary(row: Reading, blocks: &[&Apart]) -> Reading {
    let [scores, chunk, whole] =
        [0, 1, 2].map(|i| blocks.iter().flat_map(|block| block.all()[i].to_vec()).collect::<Vec<_>>());
    Apart { scores, read: [chunk, whole] }.describe(row)
}

/// How much of the squared size of rows is that of their mean, chunk by chunk.
#[derive(Default)]
pub(super) struct Bias {
    mean: f64,
    all: f64,
}

impl Bias {
    /// Adds rows of `width` values, `chunk` of which share a mean.
    pub fn add(&mut self, rows: &[f32], width: usize, chunk: usize) {
        for rows in rows.chunks_exact(chunk * width) {
            for channel in 0..width {
                let values = rows.iter().skip(channel).step_by(width).map(|x| f64::from(*x));
                let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
                self.mean += sum * sum / chunk as f64;
                self.all += squares;
            }
        }
    }

    pub fn share(&self) -> Option<f64> {
        (self.all > 0.0).then(|| self.mean / self.all)
    }
}
