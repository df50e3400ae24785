//! The default of a parameter: one literal, or a list of them, in an expression that stays as it is.

use ra_ap_syntax::ast;
use ra_ap_syntax::{AstNode, AstToken, Edition, SourceFile, SyntaxKind, SyntaxNode, SyntaxToken};
use std::fmt;

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

/// Where the literals of a default stand.
pub struct Place {
    before: String,
    after: String,
    kind: Kind,
    list: bool,
    /// Of numbers whose type is written nowhere else: `256usize`.
    suffix: String,
    /// Whether `None` may stand for the whole.
    optional: bool,
}

/// What may stand there, in words.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.list { "a list of " } else { "" }, self.kind)
    }
}

impl Place {
    /// The place in an initializer with this text and type; None where it has no literal, or several that are no list.
    pub fn of(expression: &SyntaxNode, text: &str, ty: Option<&str>) -> Option<Self> {
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

    /// The default with `given` in the place of its literals; `whole` is the same before it was trimmed.
    pub fn filled(&self, given: &str, whole: &str) -> Option<String> {
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
            // Blanks around text are some of it.
            (false, false) if self.kind == Kind::Text && !written(given) => self.literal(whole)?,
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
        let decimal = given.bytes().all(|byte| byte.is_ascii_digit() || b"-_".contains(&byte));
        match self.kind {
            kind if whole(kind) => Some(suffix(given)),
            Kind::Float if whole(Kind::Integer) && decimal => Some(suffix(&format!("{given}.0"))),
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

/// The outermost `let` statements.
pub fn statements(code: &str) -> Vec<ast::LetStmt> {
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
