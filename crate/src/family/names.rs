//! Where a network's tensors are among a checkpoint's names: programs put words of their own in front and between.

use super::{About, FAMILIES};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Words that programs put anywhere into a name: wrappers of modules, and the dicts of a pickled module. No network has
/// a part of such a name.
const WRAPPERS: [&str; 9] = [
    "module",
    "_module",
    "_orig_mod",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_modules",
    "_parameters",
    "_buffers",
];

/// What programs call the trained weights, among other tensors in one file.
const WEIGHTS: [&str; 8] =
    ["model_state_dict", "state_dict", "model", "model_state", "weights", "params", "net", "network"];

/// A checkpoint's names, sorted.
#[derive(Debug, Default, PartialEq)]
pub struct Names {
    /// The family's own name of a tensor → the checkpoint's.
    pub network: BTreeMap<String, String>,
    /// Names of what is not part of the network.
    pub others: Vec<String>,
    /// Which of several networks in one file was taken.
    pub told: Option<String>,
}

impl Names {
    /// Finds the network among names. It is empty if no name is one of a known family's.
    ///
    /// # Errors
    /// There are several networks, and nothing says which is meant; or two tensors have the same name but for words of
    /// programs.
    pub fn find<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let plain: Vec<(String, &str)> =
            names.into_iter().map(|name| (without_wrappers(name), name)).collect();
        let places = |about: &About| -> BTreeSet<&str> {
            plain.iter().filter_map(|(plain, _)| (about.before_body)(plain)).collect()
        };
        let found =
            FAMILIES.iter().map(|about| (*about, places(about))).find(|(_, places)| !places.is_empty());
        let Some((about, places)) = found else {
            let others = plain.into_iter().map(|(_, name)| name.to_string()).collect();
            return Ok(Self { others, ..Self::default() });
        };
        let base = |place| base(place, about);
        let place = choose(&places, about)?;
        // A head stands beside the body, or where the body's owner stands.
        let heads = plain.iter().filter_map(|(plain, _)| before_head(plain));
        let head = heads.filter(|before| base(place).starts_with(before)).max_by_key(|before| before.len());
        let mut found = Self::default();
        for (plain, name) in &plain {
            let of_body = plain.strip_prefix(place).and_then(about.name_in_body);
            let of_head =
                || plain.strip_prefix(head?).filter(|rest| rest.starts_with(HEAD)).map(String::from);
            let Some(own) = of_body.or_else(of_head) else {
                found.others.push(name.to_string());
                continue;
            };
            if let Some(other) = found.network.insert(own, name.to_string()) {
                return Err(Error::input(format!("it is there as {other} too")).at(name).hint(ONE_ONLY));
            }
        }
        let others: Vec<String> = places.iter().filter(|other| **other != place).map(|p| shown(p)).collect();
        if !others.is_empty() {
            let (taken, left) = (shown(place), others.join(" and "));
            found.told = Some(format!("the weights are those {taken}, not those {left}"));
        }
        Ok(found)
    }
}

/// How the names of a head begin.
const HEAD: &str = "lm_head.";

const ONE_ONLY: &str = "save the weights that you mean in a file of their own";

/// Which of the places where bodies of networks are is meant.
fn choose<'a>(places: &BTreeSet<&'a str>, about: &About) -> Result<&'a str> {
    let of_weights =
        |place: &&&str| base(place, about).split_terminator('.').all(|word| WEIGHTS.contains(&word));
    let likely: Vec<&str> = places.iter().filter(of_weights).copied().collect();
    let all: Vec<&str> = places.iter().copied().collect();
    match (&likely[..], &all[..]) {
        ([one], _) | ([], [one]) => Ok(one),
        ([], several) | (several, _) => {
            let shown: Vec<String> = several.iter().take(4).map(|place| shown(place)).collect();
            Err(Error::input(format!("there are weights {}", shown.join(" and "))).hint(ONE_ONLY))
        }
    }
}

/// A place without the network's own word for its body.
fn base<'a>(place: &'a str, about: &About) -> &'a str {
    place.strip_suffix(about.body).unwrap_or(place)
}

/// What stands before a head in its name.
fn before_head(name: &str) -> Option<&str> {
    let at = name.find(HEAD)?;
    Some(&name[..at]).filter(|before| before.is_empty() || before.ends_with('.'))
}

fn without_wrappers(name: &str) -> String {
    let words: Vec<&str> = name.split('.').filter(|word| !WRAPPERS.contains(word)).collect();
    words.join(".")
}

/// A place for the reader of a sentence.
fn shown(place: &str) -> String {
    match place {
        "" => "at the top".to_string(),
        place => format!("under {}", place.trim_end_matches('.')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = [
        "backbone.embeddings.weight",
        "backbone.layers.0.mixer.A_log",
        "backbone.layers.0.mixer.norm.weight",
        "backbone.norm_f.weight",
    ];

    fn find<S: AsRef<str>>(names: &[S]) -> Result<Names> {
        Names::find(names.iter().map(AsRef::as_ref))
    }

    #[test]
    fn words_of_programs_are_taken_off_in_any_order() {
        for prefix in [
            "",
            "module.",
            "_orig_mod.",
            "model.",
            "module._orig_mod.",
            "_orig_mod.module.model.",
            "state_dict.model._orig_mod.",
            "model_state_dict.",
            "base_model.model.",
            "ema.",
            "generator.net.",
            "_modules.",
        ] {
            for body in ["backbone.", ""] {
                let there = NAMES.map(|name| format!("{prefix}{}", name.replace("backbone.", body)));
                let head = format!("{prefix}lm_head.weight");
                let all = [&there[..], &[head.clone(), "step".into(), "optimizer.0.exp_avg".into()]].concat();
                let found = find(&all).unwrap();
                for (own, name) in NAMES.iter().zip(&there) {
                    assert_eq!(&found.network[*own], name, "{prefix}{body}");
                }
                assert_eq!(found.network["lm_head.weight"], head);
                assert_eq!((found.network.len(), found.told), (5, None));
                assert_eq!(found.others, ["step", "optimizer.0.exp_avg"]);
            }
        }
        let wrapped = ["backbone.layers.0._checkpoint_wrapped_module.mixer._orig_mod.A_log"];
        assert_eq!(find(&wrapped).unwrap().network["backbone.layers.0.mixer.A_log"], wrapped[0]);
        let module = ["_modules.backbone._modules.layers._modules.0._modules.mixer._parameters.A_log"];
        assert_eq!(find(&module).unwrap().network["backbone.layers.0.mixer.A_log"], module[0]);
        // The body of a larger model, whose head stands outside of it; the original name of the embedding.
        let outside = ["model.layers.0.mixer.A_log", "model.embedding.weight", "lm_head.weight"];
        let found = find(&outside).unwrap();
        assert_eq!(found.network["lm_head.weight"], "lm_head.weight");
        assert_eq!(found.network["backbone.embeddings.weight"], "model.embedding.weight");
    }

    #[test]
    fn the_trained_weights_are_taken_and_others_told() {
        let with = |prefixes: &[&str]| {
            find(&prefixes.iter().flat_map(|p| NAMES.map(|name| format!("{p}{name}"))).collect::<Vec<_>>())
        };
        let found = with(&["ema.", "model."]).unwrap();
        assert_eq!(found.network["backbone.norm_f.weight"], "model.backbone.norm_f.weight");
        let told = "the weights are those under model.backbone, not those under ema.backbone";
        assert_eq!((found.told.as_deref(), found.others.len()), (Some(told), 4));
        for several in [&["teacher.", "student."][..], &["model.", "state_dict."], &["", "model."]] {
            let error = with(several).unwrap_err().to_string();
            assert!(error.contains("there are weights") && error.contains("file of their own"), "{error}");
        }
        let error = with(&["", "module."]).unwrap_err().to_string();
        assert!(error.starts_with("module.backbone.embeddings.weight: it is there as backbone."), "{error}");
    }

    #[test]
    fn names_of_no_network_are_left_alone() {
        let found = find(&["a.weight", "layers.x.mixer.A_log", "mylayers.0.mixer.A_log"]).unwrap();
        assert!(found.network.is_empty() && found.others.len() == 3);
    }
}
