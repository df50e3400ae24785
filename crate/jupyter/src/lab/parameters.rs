//! Parameters of a notebook, by papermill's convention in Rust: a cell with the tag `parameters` holds `let` statements with
//! the defaults, and a cell with the tag `injected-parameters` after it those with the values that were set.
//!
//! A default has one literal (`4096`, `"w4a8"`, `Some(50)`, `"f32".to_string()`) or a list of them (`[256, 512]`,
//! `vec![…]`). What is set takes its place; the rest of the statement stays as it is written.

use super::default::{Place, statements};
use super::made::text;
use ra_ap_syntax::AstNode;
use ra_ap_syntax::ast::{self, HasName};
use serde_json::{Value, json};
use std::fmt;

const TAG: &str = "parameters";
const INJECTED: &str = "injected-parameters";

/// Sets parameters: adds the cell that holds them, or writes it anew.
///
/// # Errors
/// If the notebook has no parameters, none of a given name, or a value does not fit.
pub fn inject(notebook: &mut Value, set: &[(String, String)]) -> Result<(), String> {
    // Cells have had names since format 4.5.
    let named = notebook["nbformat_minor"].as_u64().is_some_and(|minor| minor >= 5);
    let cells = notebook["cells"].as_array_mut().ok_or("it has no cells")?;
    let place = cells.iter().position(|cell| tagged(cell, TAG)).ok_or(
        "no cell has the tag `parameters`: give it to the one whose `let` statements are to be set (in JupyterLab: \
         Property Inspector, Cell Tags)",
    )?;
    let parameters = parameters(&text(&cells[place]["source"]));
    let mut lines = vec!["// Parameters".to_string()];
    for (name, value) in set {
        let known = || parameters.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let parameter = parameters.iter().rfind(|parameter| parameter.name == *name);
        let parameter = parameter.ok_or_else(|| format!("no parameter `{name}`; there are: {}", known()))?;
        let line = parameter.with(value).map_err(|why| format!("{why}; parameters are: {}", known()))?;
        // The last of a name holds.
        lines.retain(|line| !line.starts_with(&parameter.head));
        lines.push(line);
    }
    let mut cell = json!({"cell_type": "code", "execution_count": null, "metadata": {"tags": [INJECTED]},
                          "outputs": [], "source": lines.join("\n")});
    if named {
        cell["id"] = INJECTED.into();
    }
    match cells.iter().position(|cell| tagged(cell, INJECTED)) {
        Some(old) => cells[old] = cell,
        None => cells.insert(place + 1, cell),
    }
    Ok(())
}

fn tagged(cell: &Value, tag: &str) -> bool {
    cell["cell_type"] == "code"
        && cell["metadata"]["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag))
}

/// A `let` statement with its default.
struct Parameter {
    name: String,
    /// `let mut name: T =`
    head: String,
    default: String,
    value: Option<Place>,
}

/// The parameters of a cell, in the order of their statements.
fn parameters(code: &str) -> Vec<Parameter> {
    statements(code).iter().filter_map(Parameter::of).collect()
}

impl Parameter {
    fn of(statement: &ast::LetStmt) -> Option<Self> {
        let ast::Pat::IdentPat(pattern) = statement.pat()? else { return None };
        let name = pattern.name()?.text().to_string();
        let initializer = statement.initializer()?;
        let ty = statement.ty().map(|ty| ty.syntax().text().to_string());
        let head = match &ty {
            Some(ty) => format!("let {}: {ty} =", pattern.syntax().text()),
            None => format!("let {} =", pattern.syntax().text()),
        };
        let default = initializer.syntax().text().to_string();
        let value = Place::of(initializer.syntax(), &default, ty.as_deref());
        Some(Self { name, head, default, value })
    }

    /// The statement with another value.
    fn with(&self, given: &str) -> Result<String, String> {
        let Self { name, head, default, value } = self;
        let place = value.as_ref().ok_or_else(|| {
            format!("`{name}` is `{default}`, in which there is no literal that could be another")
        })?;
        let value = place
            .filled(given.trim(), given)
            .ok_or_else(|| format!("`{name}` is {place}, and `{given}` is not"))?;
        Ok(format!("{head} {value};"))
    }
}

/// `trials = 50 (usize)`, as the choice of parameters is told.
impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.name, self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notebook(parameters: &str) -> Value {
        json!({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
            {"cell_type": "markdown", "source": "# A", "metadata": {}},
            {"cell_type": "code", "source": parameters, "metadata": {"tags": ["parameters"]}, "outputs": []},
            {"cell_type": "code", "source": "trials", "metadata": {}, "outputs": []},
        ]})
    }

    fn set(parameters: &str, name: &str, value: &str) -> Result<String, String> {
        let mut notebook = notebook(parameters);
        inject(&mut notebook, &[(name.into(), value.into())])?;
        let cell = &notebook["cells"][2];
        assert!(tagged(cell, INJECTED) && notebook["cells"][3]["source"] == "trials");
        Ok(text(&cell["source"]).strip_prefix("// Parameters\n").unwrap().to_string())
    }

    #[test]
    fn a_value_takes_the_place_of_the_literal() {
        for (default, value, expected) in [
            ("let a: usize = 50; // prompts", "20", "let a: usize = 20;"),
            ("let mut a = -5i64;", "7", "let mut a = 7i64;"),
            ("let a = 5;", "-7", "let a = -7;"),
            ("let a = 0.5;", "2", "let a = 2.0;"),
            ("let a = 1f32;", "2", "let a = 2.0f32;"),
            ("let a: f64 = 1e-3;", "-1e-4", "let a: f64 = -1e-4;"),
            ("let a = false;", "true", "let a = true;"),
            ("let a = 'x';", "é", "let a = 'é';"),
            ("let a = \"w4a8\";", "w4a4-g64", "let a = \"w4a4-g64\";"),
            ("let a = \"w4a8\";", "\"quoted \\\" text\"", "let a = \"quoted \\\" text\";"),
            ("let a = \"w4a8\";", "a \"b\" \\", "let a = \"a \\\"b\\\" \\\\\";"),
            ("let a = \"w4a8\";", "", "let a = \"\";"),
            ("let a = \"w4a8\";", "12", "let a = \"12\";"),
            ("let a = \"w4a8\";", " b ", "let a = \" b \";"),
            ("let a: String = \"x\".to_string();", "y", "let a: String = \"y\".to_string();"),
            ("let a = String::from(\"x\");", "y", "let a = String::from(\"y\");"),
            ("let a = [256, 512];", "[1, 2, 3]", "let a = [1, 2, 3];"),
            ("let a = vec![256usize, 512];", "1,2", "let a = vec![1usize, 2usize];"),
            ("let a = [\"f32\"];", "w4a8, w4a4", "let a = [\"w4a8\", \"w4a4\"];"),
            ("let a: Option<usize> = None;", "4096", "let a: Option<usize> = Some(4096);"),
            ("let a: Option<usize> = Some(1);", "None", "let a: Option<usize> = None;"),
            ("let a: Option<usize> = Some(1);", "Some(2)", "let a: Option<usize> = Some(2);"),
            ("let a: Option<String> = None;", "x", "let a: Option<String> = Some(\"x\".into());"),
        ] {
            assert_eq!(set(default, "a", value).as_deref(), Ok(expected), "{default} {value}");
        }
    }

    #[test]
    fn what_does_not_fit_lists_the_parameters() {
        for (value, part) in [
            ("x", "`a` is an integer, and `x` is not"),
            ("1.5", "`a` is an integer, and `1.5` is not"),
            ("1; evil()", "`a` is an integer, and `1; evil()` is not"),
            ("1 + 1", "`a` is an integer"),
        ] {
            let told = set("let a = 5; let b = \"x\";", "a", value).unwrap_err();
            assert!(told.contains(part) && told.ends_with("parameters are: a = 5, b = \"x\""), "{told}");
        }
        let told = set("let a = 5;\nlet b = true;", "c", "1").unwrap_err();
        assert_eq!(told, "no parameter `c`; there are: a = 5, b = true");
        assert!(set("let a = 0.5;", "a", "0x10").is_err() && set("let a = 0.5;", "a", "2u8").is_err());
        let told = set("let a = Model::load(path)?;", "a", "1").unwrap_err();
        assert!(told.contains("no literal that could be another"), "{told}");
        let mut none = json!({"cells": [{"cell_type": "code", "source": "let a = 5;", "metadata": {}}]});
        assert!(inject(&mut none, &[("a".into(), "1".into())]).unwrap_err().contains("the tag `parameters`"));
    }

    #[test]
    fn a_cell_of_before_is_written_anew() {
        let mut twice = notebook("let a = 5;\nlet b = 1;");
        inject(&mut twice, &[("a".into(), "6".into())]).unwrap();
        inject(&mut twice, &[("b".into(), "2".into()), ("b".into(), "3".into())]).unwrap();
        assert_eq!(twice["cells"].as_array().unwrap().len(), 4);
        assert_eq!(twice["cells"][2]["source"], "// Parameters\nlet b = 3;");
        assert_eq!(twice["cells"][2]["id"], INJECTED);
        // Older formats know no names of cells.
        let mut old = notebook("let a = 5;");
        old["nbformat_minor"] = json!(4);
        inject(&mut old, &[("a".into(), "6".into())]).unwrap();
        assert_eq!(old["cells"][2].get("id"), None);
    }
}
