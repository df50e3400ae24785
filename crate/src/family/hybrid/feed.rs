//! Feed-forward matrices of a hybrid: their tensors and sites.

use super::super::group::{Group, Kind, Slice};
use super::super::site::{Fed, Residual, Segment, Site};
use super::super::spec::linear;
use super::super::{Init, TensorSpec};

/// A feed-forward layer, or an expert, as matrices.
#[derive(Clone, Copy)]
pub(in crate::family) struct Feed<'a> {
    /// What the names begin with.
    pub path: &'a str,
    /// Width of the residual stream.
    pub hidden: usize,
    pub matrices: &'a [Matrix],
    pub bias: bool,
}

/// A matrix of it.
#[derive(Clone, Copy, Debug)]
pub(in crate::family) struct Matrix {
    /// Its name within the layer.
    pub name: &'static str,
    /// Its role among all matrices of a block, where that says more than its name.
    pub role: &'static str,
    /// Rows of one that reads the stream, columns of one that writes to it.
    pub width: usize,
    pub writes: bool,
    /// Parts of its rows with a meaning of their own.
    pub segments: &'static [&'static str],
    /// The matrix that the inputs of one that writes grow with, and the first of its rows that they do.
    pub fed: Option<(&'static str, usize)>,
}

impl Matrix {
    /// One that reads the stream.
    pub const fn reads(name: &'static str, width: usize) -> Self {
        Self { name, role: name, width, writes: false, segments: &[], fed: None }
    }

    /// One that writes to it.
    pub const fn writes(name: &'static str, width: usize, fed: Option<(&'static str, usize)>) -> Self {
        Self { name, role: name, width, writes: true, segments: &[], fed }
    }

    /// The same with a role of its own.
    pub const fn called(self, role: &'static str) -> Self {
        Self { role, ..self }
    }

    /// The same with so many parts of its rows, of equal size.
    pub const fn parted(self, segments: &'static [&'static str]) -> Self {
        Self { segments, ..self }
    }

    /// The three of a gated layer.
    pub const fn gated(width: usize) -> [Self; 3] {
        [
            Self::reads("gate_proj", width),
            Self::reads("up_proj", width),
            Self::writes("down_proj", width, Some(("up_proj", 0))),
        ]
    }

    fn shape(&self, hidden: usize) -> (usize, usize) {
        if self.writes { (hidden, self.width) } else { (self.width, hidden) }
    }
}

impl Feed<'_> {
    /// Its tensors; what writes to the stream starts with the deviation `out`.
    pub fn tensors(&self, out: f32) -> Vec<TensorSpec> {
        let of_matrix = |matrix: &Matrix| {
            let init = Init::Normal(if matrix.writes { out } else { 0.02 });
            linear(&format!("{}.{}", self.path, matrix.name), matrix.shape(self.hidden), init, self.bias)
        };
        self.matrices.iter().flat_map(of_matrix).collect()
    }

    /// Its channels, which a setting counts, as parts of block `layer` that can be left out: of `expert` as given.
    pub fn channels(&self, layer: usize, setting: &'static str, expert: Option<usize>) -> Vec<Group> {
        let (path, width) = self.output();
        let channel = |c: usize| {
            let mut slices = vec![];
            for matrix in self.matrices.iter().filter(|matrix| !matrix.writes) {
                for row in (c..matrix.width).step_by(width) {
                    let of = |kind: &str| Slice::row(format!("{}.{}.{kind}", self.path, matrix.name), row);
                    slices.push(of("weight"));
                    slices.extend(self.bias.then(|| of("bias")));
                }
            }
            slices.push(Slice::column(format!("{path}.weight"), c));
            let group = Group::new((Kind::Channel, setting), (layer, c), slices, (path.clone(), c..c + 1));
            Group { expert, ..group }
        };
        (0..width).map(channel).collect()
    }

    /// It as an expert that can be left out whole, one of those at `parent`, whose number follows; `routed` are the tensors with a row
    /// for each expert.
    pub fn whole(
        &self,
        layer: usize,
        setting: &'static str,
        expert: usize,
        parent: String,
        routed: Vec<String>,
    ) -> Group {
        let (path, width) = self.output();
        let slices = routed.into_iter().map(|tensor| Slice::row(tensor, expert)).collect();
        let group = Group::new((Kind::Expert, setting), (layer, expert), slices, (path, 0..width));
        Group { expert: Some(expert), whole: Some(parent), ..group }
    }

    /// The path of the matrix that writes to the stream, and its columns.
    fn output(&self) -> (String, usize) {
        let output = self.matrices.iter().find(|matrix| matrix.writes);
        output
            .map_or_else(Default::default, |output| (format!("{}.{}", self.path, output.name), output.width))
    }

    /// Its matrices in block `layer`; `norm` is the weight of the norm that it reads, `kind` what the layer is, of `expert` as given.
    pub fn sites(
        &self,
        layer: usize,
        norm: &str,
        kind: Option<&'static str>,
        expert: Option<usize>,
    ) -> Vec<Site> {
        let of_matrix = |matrix: &Matrix| {
            let Matrix { name, role, writes, segments, fed, .. } = *matrix;
            let shape = matrix.shape(self.hidden);
            let residual = if writes { Residual::Writes } else { Residual::Reads };
            let rows = shape.0 / segments.len().max(1);
            let fed = fed.map(|(path, first)| Fed {
                path: format!("{}.{path}", self.path),
                head: matrix.width,
                shared: 1,
                first,
            });
            let mut site = Site::new(format!("{}.{name}", self.path), shape, role, residual);
            site.roles.extend((role != name).then_some(name).into_iter().chain(kind));
            Site {
                layer: Some(layer),
                expert,
                segments: segments.iter().map(|name| Segment { name, rows }).collect(),
                norm: (!writes).then(|| norm.to_string()),
                fed,
                ..site
            }
        };
        self.matrices.iter().map(of_matrix).collect()
    }
}
