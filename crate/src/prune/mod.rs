//! Structured pruning: whole experts, channels and heads are left out, and a smaller model of the same family is left, which saves,
//! loads and quantizes as any other.
//!
//! | file | holds |
//! |---|---|
//! | `score` | how much each part matters |
//! | `cut` | tensors without the parts that are left out |
//!
//! What can be left out is the family's to say ([`Group`]). Parts are left out in the order of their scores per parameter until
//! no more than the asked share of the model's parameters is left. Where a setting is one size for all layers, its parts of all layers
//! that matter least go together, the next ones after them.

mod cut;
mod score;

use crate::error::{Error, Result};
use crate::family::Config;
use crate::family::group::{Group, Kind, Place};
use crate::model::{Loading, Model};
use crate::quantize::Calibration;
use crate::whole::write_bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// By what parts are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Importance {
    /// Σ w² of its weights.
    Magnitude,
    /// What it gives on the calibration text: Σ x² ‖w‖² over the columns through which it goes on (as Wanda, Sun et al. 2023).
    Use,
    /// (Σ g w)² over the windows of the calibration text, with g the gradient of the mean NLL: the first-order estimate of what leaving
    /// it out costs (Molchanov et al. 2019).
    #[default]
    Gradient,
    /// The NLL of the calibration text without what it gives, less that with it: measured, part by part.
    Loss,
}

impl Importance {
    const NAMES: [(&'static str, Self); 4] = [
        ("magnitude", Self::Magnitude),
        ("use", Self::Use),
        ("gradient", Self::Gradient),
        ("loss", Self::Loss),
    ];
}

impl fmt::Display for Importance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, known)| known == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Importance {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, importance)| *importance);
        known.ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name);
            Error::input(format!("unknown importance {name:?}"))
                .hint(format!("known are {}", names.join(", ")))
        })
    }
}

/// How a model is pruned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pruning {
    /// Share of the model's parameters that is left, at most.
    pub keep: f64,
    /// By what parts are judged.
    pub by: Importance,
    /// Parts that may be left out; empty: all kinds that the family has.
    pub kinds: Vec<Kind>,
    /// Channels are left in multiples of this: what is left fits the vectors of the kernels.
    pub multiple: usize,
    /// The text that parts are judged on, but for magnitudes.
    pub calibration: Calibration,
}

impl Default for Pruning {
    fn default() -> Self {
        let calibration = Calibration { length: 128, samples: 64, ..Calibration::default() };
        Self { keep: 0.6, by: Importance::default(), kinds: vec![], multiple: 8, calibration }
    }
}

/// A pruned model, and what became of the one before.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// What is left.
    pub model: Model,
    /// What was left out.
    pub report: Report,
}

/// What was left out of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the model before, and its hash.
    pub model: String,
    /// See above.
    pub model_hash: String,
    /// How it was pruned.
    pub pruning: Pruning,
    /// SHA-256 of the calibration text, where one was read.
    pub calibration_sha256: Option<String>,
    /// Parameters before and after.
    pub parameters: [usize; 2],
    /// By layer and kind: how many there were, and how many are left.
    pub left: Vec<Left>,
}

impl Report {
    /// Writes it beside a model, as `pruning.yaml`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("pruning.yaml");
        write_bytes(&path, serde_saphyr::to_string(self).map_err(Error::internal)?.as_bytes())
    }
}

/// How many parts of a kind are left in a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Left {
    /// Number of the layer.
    pub layer: usize,
    /// Their kind.
    pub kind: Kind,
    /// How many there were; channels of all experts together.
    pub of: usize,
    /// How many are left.
    pub left: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = self.parameters;
        let share = 100.0 * after as f64 / before as f64;
        write!(f, "{after} of {before} parameters are left ({share:.1} %), by {}", self.pruning.by)?;
        for Left { layer, kind, of, left } in &self.left {
            write!(f, "\n  layer {layer}: {left} of {of} {kind}s")?;
        }
        Ok(())
    }
}

impl Model {
    /// The model without the parts that matter least.
    ///
    /// # Errors
    /// If it is quantized, its family has no parts that can be left out, the share cannot be reached, or the text cannot be read.
    pub fn pruned(&self, how: &Pruning) -> Result<Pruned> {
        let refused = |what: String, hint: &str| Err(Error::input(what).at(&self.name).hint(hint));
        if self.quantization.is_some() {
            return refused("a quantized model is not pruned".to_string(), "prune first, then quantize");
        }
        if !(how.keep > 0.0 && how.keep <= 1.0) {
            return refused(
                format!("keep is a share between 0 and 1, found {}", how.keep),
                ".6 leaves three fifths",
            );
        }
        if how.multiple == 0 {
            return refused("multiple must be at least 1, found 0".to_string(), "1 leaves any number");
        }
        let groups = self.config.groups();
        let allowed = |group: &&Group| how.kinds.is_empty() || how.kinds.contains(&group.kind);
        let groups: Vec<Group> = groups.iter().filter(allowed).cloned().collect();
        if groups.is_empty() {
            let kinds: Vec<String> = how.kinds.iter().map(ToString::to_string).collect();
            let what = match kinds.is_empty() {
                true => format!("nothing can be left out of a {} whole", self.config.family()),
                false => format!(
                    "a {} has no {}s that could be left out",
                    self.config.family(),
                    kinds.join("s or ")
                ),
            };
            return refused(what, "leave --kinds out, or prune a model of another family");
        }
        let (scores, calibration_sha256) = score::scores(self, &groups, how)?;
        let order = Order::new(self, &groups, &scores, how);
        let before = self.parameters();
        let goal = how.keep * before as f64;
        let left_after =
            |steps: usize| -> Result<usize> { Ok(parameters(&self.config.without(&order.left_out(steps))?)) };
        let (mut least, mut most) = (0, order.steps());
        if left_after(most)? as f64 > goal {
            let share = left_after(most)? as f64 / before as f64;
            return refused(
                format!("at most {:.1} % of the parameters can be left out", 100.0 * (1.0 - share)),
                "raise keep, or let more kinds of parts be left out",
            );
        }
        while least < most {
            let middle = (least + most) / 2;
            match left_after(middle)? as f64 <= goal {
                true => most = middle,
                false => least = middle + 1,
            }
        }
        let left_out = order.left_out(least);
        let config = self.config.without(&left_out)?;
        let tensors = cut::cut(self.tensors(), &left_out)?;
        let loading = Loading { tokenizer: Some(self.tokenizer.clone()), ..Loading::default() };
        let name = format!("{}-pruned", self.name);
        let mut model = Model::from_tensors(&name, config, tensors, &loading)?;
        model.training_length = self.training_length;
        let report = Report {
            model: self.name.clone(),
            model_hash: self.hash.clone(),
            pruning: how.clone(),
            calibration_sha256,
            parameters: [before, model.parameters()],
            left: counted(&groups, &left_out),
        };
        Ok(Pruned { model, report })
    }
}

fn parameters(config: &Config) -> usize {
    config.tensors().iter().map(|spec| spec.shape.iter().product::<usize>()).sum()
}

/// By layer and kind how many there were, and how many are left.
fn counted(groups: &[Group], left_out: &[&Group]) -> Vec<Left> {
    let key = |group: &Group| (group.place(), group.at);
    let out: BTreeSet<_> = left_out.iter().map(|group| key(group)).collect();
    let experts = left_out.iter().filter(|group| group.kind == Kind::Expert);
    let experts: BTreeSet<_> = experts.map(|group| (group.layer, group.expert)).collect();
    // Channels of an expert that is gone are gone with it.
    let with_expert = |group: &Group| {
        group.kind == Kind::Channel
            && group.expert.is_some()
            && experts.contains(&(group.layer, group.expert))
    };
    let mut all: BTreeMap<(usize, Kind), (usize, usize)> = BTreeMap::new();
    for group in groups {
        let count = all.entry((group.layer, group.kind)).or_default();
        let gone = out.contains(&key(group)) || with_expert(group);
        *count = (count.0 + 1, count.1 + usize::from(!gone));
    }
    all.into_iter().map(|((layer, kind), (of, left))| Left { layer, kind, of, left }).collect()
}

/// The order in which parts are left out, those that matter least first.
struct Order<'a> {
    /// What goes together.
    each: Vec<Vec<&'a Group>>,
    /// How many there are in each place, and how many must stay.
    places: BTreeMap<Place, (usize, usize)>,
    multiple: usize,
}

impl<'a> Order<'a> {
    fn new(model: &Model, groups: &'a [Group], scores: &[f64], how: &Pruning) -> Self {
        let mut places: BTreeMap<Place, (usize, usize)> = BTreeMap::new();
        for group in groups {
            let least = if group.kind == Kind::Expert { model.config.chosen_experts().max(1) } else { 1 };
            let (count, stays) = places.entry(group.place()).or_insert((0, least));
            (*count, *stays) = (*count + 1, least);
        }
        let size = |group: &Group| cut::size(model.tensors(), group).max(1) as f64;
        let mut scored: Vec<(f64, &Group)> =
            groups.iter().zip(scores).map(|(group, score)| (score / size(group), group)).collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0));
        // The least of every layer together, then the next ones; by the mean of their scores.
        let mut ranks: BTreeMap<(&str, usize), Vec<(f64, &Group)>> = BTreeMap::new();
        let mut seen: BTreeMap<Place, usize> = BTreeMap::new();
        let mut together: Vec<(f64, Vec<&Group>)> = vec![];
        for (score, group) in scored {
            if !model.config.is_even(group.setting) {
                together.push((score, vec![group]));
                continue;
            }
            let rank = seen.entry(group.place()).or_default();
            ranks.entry((group.setting, *rank)).or_default().push((score, group));
            *rank += 1;
        }
        together.extend(ranks.into_values().map(|all| {
            let mean = all.iter().map(|(score, _)| score).sum::<f64>() / all.len() as f64;
            (mean, all.into_iter().map(|(_, group)| group).collect())
        }));
        together.sort_by(|a, b| a.0.total_cmp(&b.0));
        let each = together.into_iter().map(|(_, groups)| groups).collect();
        Self { each, places, multiple: how.multiple }
    }

    fn steps(&self) -> usize {
        self.each.len()
    }

    /// What is left out after so many steps: of no place more than may go, and channels in whole multiples, the last ones back first.
    fn left_out(&self, steps: usize) -> Vec<&'a Group> {
        let mut gone: BTreeMap<Place, Vec<&'a Group>> = BTreeMap::new();
        for group in self.each[..steps].iter().flatten() {
            gone.entry(group.place()).or_default().push(group);
        }
        for (place, gone) in &mut gone {
            let (count, stays) = self.places[place];
            let step = if matches!(place.1, Kind::Channel | Kind::Inner) { self.multiple } else { 1 };
            let left = count.saturating_sub(gone.len()).max(stays).next_multiple_of(step).min(count);
            gone.truncate(count - left);
        }
        let experts: Vec<(usize, Option<usize>)> = gone
            .values()
            .flatten()
            .filter(|group| group.kind == Kind::Expert)
            .map(|group| (group.layer, group.expert))
            .collect();
        // Channels of an expert that goes go with it.
        let within =
            |group: &&Group| group.kind == Kind::Channel && experts.contains(&(group.layer, group.expert));
        gone.into_values().flatten().filter(|group| !within(group)).collect()
    }
}

#[cfg(test)]
mod tests;
