//! Parameters of a notebook, by papermill's convention in Rust: a cell with the tag `parameters` holds `let` statements with
//! the defaults, and a cell with the tag `injected-parameters` after it those with the values that were set.
//!
//! A default has one literal (`4096`, `"w4a8"`, `Some(50)`, `"f32".to_string()`) or a list of them (`[256, 512]`,
//! `vec![…]`). What is set takes its place; the rest of the statement stays as it is written.

use ra_ap_syntax::ast::{self, HasName};
use ra_ap_syntax::{AstNode, AstToken, Edition, SourceFile, SyntaxKind, SyntaxNode, SyntaxToken};
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
    let parameters = parameters(&source(&cells[place]));
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

fn source(cell: &Value) -> String {
    match &cell["source"] {
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        source => source.as_str().unwrap_or_default().to_string(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Integer,
    Float,
    Text,
    Char,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "true or false",
            Self::Integer => "an integer",
            Self::Float => "a number",
            Self::Text => "text",
            Self::Char => "a character",
        })
    }
}

/// A `let` statement with its default.
struct Parameter {
    name: String,
    /// `let mut name: T =`
    head: String,
    default: String,
    value: Option<Place>,
}

/// Where the literals of a default stand.
struct Place {
    before: String,
    after: String,
    kind: Kind,
    list: bool,
    /// Of numbers whose type is written nowhere else: `256usize`.
    suffix: String,
    /// Whether `None` may stand for the whole.
    optional: bool,
}

/// The parameters of a cell, in the order of their statements.
fn parameters(code: &str) -> Vec<Parameter> {
    statements(code).iter().filter_map(Parameter::of).collect()
}

/// The outermost `let` statements.
fn statements(code: &str) -> Vec<ast::LetStmt> {
    let file = SourceFile::parse(&format!("fn cell() {{\n{code}\n}}"), Edition::Edition2024).tree();
    let body = file.syntax().children().find_map(ast::Fn::cast).and_then(|function| function.body());
    let nodes = body.and_then(|body| body.stmt_list()).into_iter();
    nodes
        .flat_map(|list| list.syntax().children().filter_map(ast::LetStmt::cast).collect::<Vec<_>>())
        .collect()
}

/// A literal token, with the minus before it.
struct Literal {
    kind: Kind,
    start: usize,
    end: usize,
    suffix: String,
}

/// The literals of an expression.
fn literals(expression: &SyntaxNode) -> Vec<Literal> {
    let from = usize::from(expression.text_range().start());
    let tokens = expression.descendants_with_tokens().filter_map(|element| element.into_token());
    tokens.filter_map(|token| literal(&token, from)).collect()
}

fn literal(token: &SyntaxToken, from: usize) -> Option<Literal> {
    let kind = match token.kind() {
        SyntaxKind::INT_NUMBER => Kind::Integer,
        SyntaxKind::FLOAT_NUMBER => Kind::Float,
        SyntaxKind::STRING => Kind::Text,
        SyntaxKind::CHAR => Kind::Char,
        SyntaxKind::TRUE_KW | SyntaxKind::FALSE_KW => Kind::Bool,
        _ => return None,
    };
    let integer = ast::IntNumber::cast(token.clone());
    let integer = integer.and_then(|number| number.suffix().map(str::to_string));
    let float = ast::FloatNumber::cast(token.clone());
    let suffix = integer.or(float.and_then(|number| number.suffix().map(str::to_string))).unwrap_or_default();
    let kind = if suffix.starts_with('f') { Kind::Float } else { kind };
    let minus = token.prev_token().filter(|before| {
        let ahead = before.prev_token();
        let begins = ahead.is_none_or(|ahead| {
            usize::from(ahead.text_range().end()) <= from
                || ahead.kind().is_trivia()
                || matches!(ahead.kind(), SyntaxKind::L_PAREN | SyntaxKind::L_BRACK | SyntaxKind::COMMA)
        });
        before.kind() == SyntaxKind::MINUS && begins && usize::from(before.text_range().start()) >= from
    });
    let start = minus.map_or(token.text_range().start(), |minus| minus.text_range().start());
    Some(Literal {
        kind,
        start: usize::from(start) - from,
        end: usize::from(token.text_range().end()) - from,
        suffix,
    })
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
        let value = place.filled(given.trim(), given).ok_or_else(|| {
            let what = if place.list { format!("a list of {}", place.kind) } else { place.kind.to_string() };
            format!("`{name}` is {what}, and `{given}` is not")
        })?;
        Ok(format!("{head} {value};"))
    }
}

/// `trials = 50 (usize)`, as the choice of parameters is told.
impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.name, self.default)
    }
}

impl Place {
    fn of(expression: &SyntaxNode, text: &str, ty: Option<&str>) -> Option<Self> {
        let optional = ty.is_some_and(|ty| ty.starts_with("Option"));
        if text == "None" {
            let ty = ty.filter(|_| optional)?;
            let has = |names: &[&str]| names.iter().any(|name| ty.contains(name));
            let kind = match () {
                () if has(&["str", "String"]) => Kind::Text,
                () if has(&["bool"]) => Kind::Bool,
                () if has(&["char"]) => Kind::Char,
                () if has(&["f32", "f64"]) => Kind::Float,
                () => Kind::Integer,
            };
            let after = if ty.contains("String") { ".into())" } else { ")" };
            let (before, suffix) = ("Some(".into(), String::new());
            return Some(Self { before, after: after.into(), kind, list: false, suffix, optional });
        }
        let found = literals(expression);
        let (first, last) = (found.first()?, found.last()?);
        let (before, after) = (text[..first.start].to_string(), text[last.end..].to_string());
        let list = before.trim_end().ends_with('[');
        let one_kind = found.iter().all(|literal| literal.kind == first.kind);
        let between = found.windows(2).all(|pair| text[pair[0].end..pair[1].start].trim() == ",");
        if !(one_kind && between && (list || found.len() == 1)) {
            return None;
        }
        // Elsewhere than in the literal the type need not be written again.
        let suffix = if ty.is_none() { first.suffix.clone() } else { String::new() };
        Some(Self { before, after, kind: first.kind, list, suffix, optional })
    }

    /// The default with `given` in the place of its literals.
    fn filled(&self, given: &str, whole: &str) -> Option<String> {
        if self.optional && given == "None" {
            return Some("None".into());
        }
        let inner = match (self.list, self.optional) {
            (true, _) => {
                let inner = given.trim_start_matches('&').trim_start_matches("vec!");
                let inner =
                    inner.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(inner);
                let items = inner.split(',').map(str::trim).filter(|item| !item.is_empty());
                let items: Vec<String> = items.map(|item| self.literal(item)).collect::<Option<_>>()?;
                items.join(", ")
            }
            (false, true) => {
                let inner = given.strip_prefix("Some(").and_then(|inner| inner.strip_suffix(')'));
                self.literal(inner.unwrap_or(given))?
            }
            (false, false) if self.kind == Kind::Text => {
                self.literal(given).filter(|_| written(given)).or_else(|| self.literal(whole))?
            }
            (false, false) => self.literal(given)?,
        };
        Some(format!("{}{inner}{}", self.before, self.after))
    }

    /// One literal of the kind: as it is written, text also without its quotes.
    fn literal(&self, given: &str) -> Option<String> {
        let statements = statements(&format!("let x = {given};"));
        let expression = match statements.as_slice() {
            [one] => one.initializer().filter(|value| value.syntax().text() == given),
            _ => None,
        };
        let found = expression.map(|expression| literals(expression.syntax())).unwrap_or_default();
        let whole = |kind: Kind| match found.as_slice() {
            [one] => one.kind == kind && one.start == 0 && one.end == given.len(),
            _ => false,
        };
        let suffix = |text: &str| match found.first() {
            Some(literal) if literal.suffix.is_empty() => format!("{text}{}", self.suffix),
            _ => text.to_string(),
        };
        match self.kind {
            kind if whole(kind) => Some(suffix(given)),
            Kind::Float if whole(Kind::Integer) => Some(suffix(&format!("{given}.0"))),
            Kind::Text => Some(format!("{given:?}")),
            Kind::Char => {
                given.chars().next().filter(|_| given.chars().count() == 1).map(|c| format!("{c:?}"))
            }
            _ => None,
        }
    }
}

/// Whether text has its quotes.
fn written(given: &str) -> bool {
    given.ends_with(['"', '#'])
        && (given.starts_with('"') || given.starts_with("r\"") || given.starts_with("r#"))
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
        Ok(source(cell).strip_prefix("// Parameters\n").unwrap().to_string())
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
