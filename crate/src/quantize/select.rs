//! Which rows of which matrices a scheme quantizes, and to what.

use super::Scheme;
use crate::error::{Error, Result};
use crate::family::Site;
use crate::format::Coding;
use std::collections::BTreeSet;
use wildmatch::WildMatch;

/// Rows of a matrix that are treated alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What they are, where they are not the whole matrix.
    pub segment: Option<String>,
    /// The first of them.
    pub first: usize,
    /// How many.
    pub rows: usize,
    /// Their format; none leaves them as they are.
    pub coding: Option<Coding>,
    /// Bits of each row, where they are chosen by row: of integers that are kept as those of 8 bits.
    pub widths: Option<Vec<u8>>,
}

/// The parts of every site, in the order of the sites; neighbours in one format are one part, unless widths are to be
/// chosen for each segment apart.
///
/// # Errors
/// If a pattern fits nothing, or a format cannot take a matrix of that shape.
pub fn parts(scheme: &Scheme, sites: &[Site]) -> Result<Vec<Vec<Part>>> {
    let all = segments(scheme, sites)?;
    Ok(if scheme.budget.is_some() { all } else { all.into_iter().map(joined).collect() })
}

/// As [`parts`], every segment a part of its own.
///
/// # Errors
/// As [`parts`].
pub fn segments(scheme: &Scheme, sites: &[Site]) -> Result<Vec<Vec<Part>>> {
    for rule in &scheme.rules {
        if !sites.iter().any(|site| fits(&rule.pattern, site)) {
            let roles = listed(sites.iter().flat_map(|site| site.roles.iter().copied()));
            let segments = sites.iter().flat_map(|site| site.segments.iter().map(|segment| segment.name));
            let segments = match listed(segments) {
                none if none.is_empty() => "it has no segments".to_string(),
                segments => format!("its segments {segments}"),
            };
            let what = format!("the pattern {:?} fits no matrix of the model", rule.pattern);
            let hint = format!("its roles are {roles}, {segments}; `lowbit info --linears` lists the paths");
            return Err(Error::input(what).at(format!("scheme {scheme}")).hint(hint));
        }
    }
    sites.iter().map(|site| parts_of(scheme, site)).collect()
}

/// Names in their order, each once.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

/// Neighbours in one format as one part.
pub(super) fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut all: Vec<Part> = vec![];
    for part in parts {
        match all.last_mut() {
            Some(last) if last.coding == part.coding => {
                last.rows += part.rows;
                if last.segment != part.segment {
                    last.segment = last.segment.take().zip(part.segment).map(|(a, b)| format!("{a}|{b}"));
                }
            }
            _ => all.push(part),
        }
    }
    if let [part] = all.as_mut_slice() {
        part.segment = None;
    }
    all
}

fn parts_of(scheme: &Scheme, site: &Site) -> Result<Vec<Part>> {
    let mut parts: Vec<Part> = vec![];
    let whole = [(None, site.rows)];
    let segments: Vec<(Option<&str>, usize)> = match site.segments.as_slice() {
        [] => whole.to_vec(),
        segments => segments.iter().map(|segment| (Some(segment.name), segment.rows)).collect(),
    };
    let mut first = 0;
    for (segment, rows) in segments {
        let rule = scheme.rules.iter().rev().find(|rule| matches(&rule.pattern, site, segment));
        let coding = match rule {
            Some(rule) => rule.coding,
            None if site.roles.contains(&"head") => scheme.head(),
            None => scheme.weights.filter(|_| site.by_default),
        };
        parts.push(Part { segment: segment.map(String::from), first, rows, coding, widths: None });
        first += rows;
    }
    for part in &parts {
        if let Some(coding) = part.coding {
            coding.check(part.rows, site.cols).map_err(|error| error.at(&site.path))?;
        }
    }
    Ok(parts)
}

/// Whether a scheme that rounds activations rounds those that a site reads.
pub(super) fn reads_rounded(scheme: &Scheme, site: &Site, parts: &[Part]) -> bool {
    let rows_in = match scheme.weights.is_some() || scheme.blocks {
        true => parts.iter().any(|part| part.coding.is_some()),
        false => site.by_default,
    };
    rows_in && !site.is_table()
}

/// Whether a rule speaks of a site, or of a segment of it.
pub(super) fn ruled(scheme: &Scheme, site: &Site) -> bool {
    scheme.rules.iter().any(|rule| fits(&rule.pattern, site))
}

fn fits(pattern: &str, site: &Site) -> bool {
    matches(pattern, site, None)
        || site.segments.iter().any(|segment| matches(pattern, site, Some(segment.name)))
}

/// Whether a pattern is the role of a site, the name of a segment, or fits the path of either.
fn matches(pattern: &str, site: &Site, segment: Option<&str>) -> bool {
    if site.roles.contains(&pattern) || segment == Some(pattern) {
        return true;
    }
    let glob = WildMatch::new(pattern);
    glob.matches(&site.path) || segment.is_some_and(|name| glob.matches(&format!("{}.{name}", site.path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Config;

    fn of(name: &str) -> Result<Vec<Vec<Part>>> {
        parts(&name.parse()?, &Config::named("mamba2-tiny")?.sites())
    }

    fn shown(parts: &[Part]) -> Vec<String> {
        let shown = |part: &Part| {
            let coding = part.coding.map_or("keep".to_string(), |coding| coding.to_string());
            format!("{}:{}={coding}", part.segment.as_deref().unwrap_or("all"), part.rows)
        };
        parts.iter().map(shown).collect()
    }

    #[test]
    fn rules_choose_rows_and_the_last_one_holds() {
        let plain = of("w4a8-g64").unwrap();
        assert_eq!(shown(&plain[0]), ["all:1160=w4-g64"]);
        assert_eq!(shown(plain.last().unwrap()), ["all:256=w8"]); // the head's own default
        assert_eq!(shown(of("w4a16").unwrap().last().unwrap()), ["all:256=keep"]);
        assert_eq!(shown(of("w4a8+head=keep").unwrap().last().unwrap()), ["all:256=keep"]);
        let dt = of("w4a8+dt=w8").unwrap();
        assert_eq!(shown(&dt[2]), ["z|x|B|C:1152=w4", "dt:8=w8"]);
        assert_eq!(shown(&dt[3]), ["all:256=w4"]);
        let ruled = of("w4a8+in_proj=keep+*.0.mixer.in_proj.x=nf4+embedding=w8").unwrap();
        assert_eq!(shown(&ruled[0]), ["z:512=keep", "x:512=nf4", "B|C|dt:136=keep"]);
        assert_eq!(shown(&ruled[2]), ["all:1160=keep"]);
        assert_eq!(shown(ruled.last().unwrap()), ["all:256=w8"]);
    }

    #[test]
    fn what_fits_nothing_is_refused() {
        let error = |name: &str| of(name).unwrap_err().to_string();
        let nothing = error("w4a8+router=w8");
        let named = "its roles are embedding, head, in_proj, out_proj, its segments B, C, dt, x, z;";
        assert!(
            nothing.contains("the pattern \"router\" fits no matrix") && nothing.contains(named),
            "{nothing}"
        );
        // The segments of another family are none of this one's.
        let llama = Config::named("llama-tiny").unwrap().sites();
        let nothing = parts(&"w4a8+dt=w8".parse().unwrap(), &llama).unwrap_err().to_string();
        let named = "the pattern \"dt\" fits no matrix of the model; its roles are down_proj, embedding, gate_proj, head, \
                     k_proj, o_proj, q_proj, up_proj, v_proj, it has no segments;";
        assert!(nothing.contains(named), "{nothing}");
        let large = error("w4a8-g512");
        let place = "backbone.layers.0.mixer.in_proj: groups of 512 are larger than the row of 256";
        assert!(large.contains(place), "{large}");
    }
}
