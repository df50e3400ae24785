//! What to do about the mistakes that are made most, a line for each: under what the compiler says, or before it is asked.

use crate::cell::BROUGHT;

/// The advice for an error with this code and message; `unkept` are variables that an earlier cell could not keep, and what they are.
pub fn advice(code: Option<&str>, message: &str, unkept: &[(String, String)]) -> Option<String> {
    let quoted = message.split('`').nth(1).unwrap_or_default();
    let numbers = ["f32", "f64", "{float}"];
    let integers = ["usize", "i32", "i64", "u32", "u64", "{integer}"];
    let names = |all: &[&str]| all.iter().any(|name| message.contains(&format!("`{name}`")));
    if message.starts_with("cannot find macro") {
        let why = "a macro that another macro defined is for its own cell alone";
        return Some(format!("`{quoted}` is not known here: {why}, and one of another crate needs a `use`"));
    }
    Some(match code? {
        "E0425" if let Some((_, what)) = unkept.iter().rev().find(|(name, _)| name == quoted) => {
            format!("`{quoted}` was for its own cell alone, since it is {what}")
        }
        "E0425" => format!(
            "`{quoted}` is not known here: a variable of a cell that failed, was not run, gave it away, or bound it in a macro is not there"
        ),
        "E0069" => "a cell ends early by `return Ok(());`".into(),
        "E0382" => format!(
            "`{quoted}` was given away: lend it instead (`&{quoted}`), or give a copy away (`{quoted}.clone()`)"
        ),
        "E0596" => format!("what changes must be said to: `let mut {quoted} = …`, or `&mut` where it is lent"),
        "E0384" => format!("what is given a second value must be said to change: `let mut {quoted} = …`"),
        "E0599" if message.contains("Result<") || message.contains("Option<") => {
            "what may fail comes in a Result or an Option: put `?` behind the call that returns it".into()
        }
        "E0599" => "a method of another type, or of a trait that needs a `use`: Tab behind the dot lists what there is".into(),
        "E0277" if message.contains("the `?` operator") => {
            "`?` hands an error on: inside a function or closure of yours, let it return lowbit::Result<…>".into()
        }
        "E0277" if names(&numbers) && names(&integers) => {
            "integers and real numbers do not mix by themselves: write `2.0`, or `n as f64`".into()
        }
        "E0277" | "E0308" if message.contains("Result<") => {
            "what may fail comes in a Result: put `?` behind the call".into()
        }
        "E0308" => "another type is wanted: lend with `&`, convert with `as`, `.into()` or `.to_string()`, open a Result with `?`".into(),
        "E0282" | "E0283" | "E0284" => {
            "say the type: `let x: Vec<f64> = …`, or `.collect::<Vec<_>>()`".into()
        }
        "E0061" => "the number of arguments is another: Shift-Tab inside the brackets shows what it takes".into(),
        "E0369" => "this operator is not there for these types: lend both (`&a + &b`), or convert one".into(),
        // A path within a macro: elsewhere it is taken for lowbit's.
        "E0432" | "E0433" if BROUGHT.iter().any(|name| message.contains(&format!("`{name}`"))) => {
            "lowbit brings polars, plotters and candle: `use polars::prelude::*;` in a line of its own, or `lowbit::polars::…` here".into()
        }
        "E0277" if message.contains("`LazyFrame`") => "a lazy query shows when it is computed: `.collect()?`".into(),
        "E0432" | "E0433" => {
            "a name that is not known: a crate is brought by `:dep name = \"1\"`, what is in one by `use`".into()
        }
        "E0505" | "E0502" | "E0499" => {
            "it is lent out while it changes or is given away: end the loan first, or work on a `.clone()`".into()
        }
        "E0728" | "E0752" => "`.await` stands in a cell itself or in an `async` block, not in a plain function".into(),
        _ => return None,
    })
}

/// The name in code of the crate that a `:dep` brings.
pub fn brought(dependency: &str) -> Option<String> {
    let name = dependency.trim_start().split(['=', ' ']).next()?.trim_matches('"').replace('-', "_");
    (!name.is_empty()).then_some(name)
}

/// For a `:dep` on a crate that lowbit re-exports: how to have that one.
pub fn brought_already(name: &str) -> Option<String> {
    BROUGHT.contains(&name).then(|| {
        format!(
            "lowbit brings {name}: `use lowbit::{name};` is enough. The {name} of :dep is compiled anew, and its types are others.\n"
        )
    })
}

/// Of a static whose value changes: that it does not last.
pub fn begins_anew(name: &str) -> String {
    format!(
        "{name} begins anew in every cell, since a static is compiled with each: what is to last, keep by `let`\n"
    )
}

#[cfg(test)]
mod tests {
    use super::advice;

    #[test]
    fn frequent_mistakes_have_a_line() {
        let of = |code: &str, message: &str| {
            advice(Some(code), message, &[("g".into(), "a closure".into())]).unwrap_or_default()
        };
        assert!(of("E0382", "use of moved value: `model`").contains("`&model`"));
        assert!(of("E0425", "cannot find function `g` in this scope").contains("its own cell"));
        assert!(of("E0277", "cannot add `f64` to `usize`").contains("as f64"));
        assert!(of("E0599", "no method named `x` found for enum `std::result::Result<T, E>`").contains('?'));
        assert!(of("E0596", "cannot borrow `v` as mutable").contains("let mut v"));
        assert!(
            advice(None, "cannot find macro `plus` in this scope", &[])
                .unwrap_or_default()
                .contains("`plus`")
        );
        assert_eq!(advice(None, "expected expression", &[]), None);
    }
}
