//! The code of a cell: its commands, its `let` statements, and how these are written with the types that the compiler
//! found.
//!
//! evcxr keeps the variables of a cell's outermost `let` statements, and has to know the type of each. Where none is
//! written down it asks rust-analyzer, which does not know the types that macros and other crates' generics bring about.
//! So the types are asked of the compiler (`types`), and written into the cell before evcxr gets it.

use ra_ap_syntax::ast::{self, HasName, HasVisibility};
use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxNode};
use std::collections::BTreeMap;

/// What stands around a cell where it is parsed.
const BEFORE: &str = "fn cell() {\n";

/// A `let` statement whose type is not written down, or not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Let {
    /// First byte of the statement in the cell.
    start: usize,
    /// The byte after it.
    end: usize,
    /// Where the type goes, if the statement binds one variable and no more: in place of these bytes.
    place: Option<(usize, usize)>,
    /// Its variables, and whether they are mutable.
    variables: Vec<(String, bool)>,
}

/// What is known of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Its type, as it can be written.
    Named(String),
    /// The type has no name: what it is, in words.
    Nameless(String),
}

/// The byte at which the commands of a cell (`:dep`, `!ls`) end and its code begins.
pub fn code_begins(cell: &str) -> usize {
    let mut at = 0;
    for line in cell.split_inclusive('\n') {
        let text = line.trim_start();
        if !(text.is_empty() || text.starts_with(':') || line.starts_with('!') || line.starts_with("//")) {
            return at;
        }
        at += line.len();
    }
    cell.len()
}

/// The outermost nodes of `code`: statements, items, attributes.
fn nodes(code: &str) -> Vec<SyntaxNode> {
    let file = SourceFile::parse(&format!("{BEFORE}{code}\n}}"), Edition::Edition2024).tree();
    let body = file.syntax().children().find_map(ast::Fn::cast).and_then(|function| function.body());
    let list = body.and_then(|body| body.stmt_list());
    list.map(|list| list.syntax().children().collect()).unwrap_or_default()
}

/// The outermost `let` statements of `code` that leave a type to be found.
pub fn lets(code: &str) -> Vec<Let> {
    nodes(code).into_iter().filter_map(ast::LetStmt::cast).filter_map(|statement| one(&statement)).collect()
}

/// The code with its last expression shown by a statement of its own, if it has variables and ends in an expression that
/// may use one up. evcxr borrows what it shows where that fails, and then shows only its plainest form.
pub fn showing(code: &str) -> Option<String> {
    let nodes = nodes(code);
    let last = ast::Expr::cast(nodes.last()?.clone())?;
    let block = matches!(
        last,
        ast::Expr::BlockExpr(_)
            | ast::Expr::IfExpr(_)
            | ast::Expr::MatchExpr(_)
            | ast::Expr::ForExpr(_)
            | ast::Expr::WhileExpr(_)
            | ast::Expr::LoopExpr(_)
            | ast::Expr::ReturnExpr(_)
    );
    if block || !nodes.iter().any(|node| node.kind() == SyntaxKind::LET_STMT) {
        return None;
    }
    let range = last.syntax().text_range();
    let (from, to) = (usize::from(range.start()) - BEFORE.len(), usize::from(range.end()) - BEFORE.len());
    Some(edited(code, [(from, from, "(".to_string()), (to, to, ").evcxr_display();".to_string())]))
}

/// The crates that cells have by lowbit, whose paths in code as others write it begin with their own name.
pub const BROUGHT: [&str; 3] = ["candle_core", "plotters", "polars"];

/// The code with `lowbit::` before each path that begins with one of `crates`: `use polars::prelude::*;` as in polars'
/// tutorials. The lines stay where they are.
pub fn through_lowbit(code: &str, crates: &[&str]) -> String {
    let first = |path: &ast::Path| {
        let segment = path.first_segment().filter(|_| path.qualifier().is_none())?;
        let named = segment.coloncolon_token().is_none()
            && crates.iter().any(|name| segment.name_ref().is_some_and(|own| own.text() == *name));
        let trees: Vec<_> = path.syntax().ancestors().filter_map(ast::UseTree::cast).collect();
        let (used, within) = (!trees.is_empty(), trees.iter().skip(1).any(|tree| tree.path().is_some()));
        let goes_on = path.syntax().parent().is_some_and(|parent| parent.kind() == SyntaxKind::PATH);
        (named && !within && (used || goes_on)).then(|| usize::from(path.syntax().text_range().start()))
    };
    let nodes = nodes(code).into_iter().flat_map(|node| node.descendants().collect::<Vec<_>>());
    let places: Vec<_> = nodes.filter_map(ast::Path::cast).filter_map(|path| first(&path)).collect();
    edited(code, places.into_iter().map(|at| at - BEFORE.len()).map(|at| (at, at, "lowbit::".to_string())))
}

/// How often a name stands in the code, also in braces of a text.
pub fn uses(code: &str, name: &str) -> usize {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.split(|c| !part(c)).filter(|word| *word == name).count()
}

/// Whether a cell holds more than commands and comments, so that something runs.
pub fn runs(cell: &str) -> bool {
    nodes(&cell[code_begins(cell)..]).iter().any(|node| node.kind() != SyntaxKind::ATTR)
}

/// The statics of a cell whose values change. Each cell is compiled with one of its own, which begins anew.
pub fn statics(cell: &str) -> Vec<String> {
    let all =
        nodes(&cell[code_begins(cell)..]).into_iter().flat_map(|node| node.descendants().collect::<Vec<_>>());
    let changes = |item: &ast::Static| {
        let ty = item.ty().map(|ty| ty.syntax().text().to_string()).unwrap_or_default();
        let inside = ["Cell", "Mutex", "RwLock", "Atomic", "Once", "Lazy"];
        item.mut_token().is_some() || inside.iter().any(|name| ty.contains(name))
    };
    let names = all.filter_map(ast::Static::cast).filter(changes).filter_map(|item| item.name());
    names.map(|name| name.text().to_string()).collect()
}

fn one(statement: &ast::LetStmt) -> Option<Let> {
    let (pattern, value) = (statement.pat()?, statement.initializer()?);
    let open = |ty: &ast::Type| {
        let mut nodes = ty.syntax().descendants();
        nodes.any(|node| node.kind() == SyntaxKind::INFER_TYPE)
    };
    let written = statement.ty();
    // rust-analyzer knows the type of a literal.
    if written.as_ref().is_some_and(|ty| !open(ty)) || matches!(value, ast::Expr::Literal(_)) {
        return None;
    }
    let at = |offset: ra_ap_syntax::TextSize| usize::from(offset) - BEFORE.len();
    let range = statement.syntax().text_range();
    let variables = pattern.syntax().descendants().filter_map(ast::IdentPat::cast).filter_map(|variable| {
        let name = variable.name()?.text().to_string();
        // A capital begins a constant or a variant: `None` is no variable.
        let binds = name.starts_with(|first: char| !first.is_uppercase());
        binds.then(|| (name, variable.mut_token().is_some()))
    });
    let variables: Vec<_> = variables.collect();
    let end = at(pattern.syntax().text_range().end());
    let alone = match &pattern {
        ast::Pat::IdentPat(variable) => variable.pat().is_none() && variable.ref_token().is_none(),
        _ => false,
    };
    let place = alone.then(|| (end, written.map_or(end, |ty| at(ty.syntax().text_range().end()))));
    (!variables.is_empty()).then(|| Let { start: at(range.start()), end: at(range.end()), place, variables })
}

/// How many brackets of the code are open at its end; an unfinished text or comment counts as one.
///
/// # Errors
/// If one is closed that is not open.
pub fn brackets(code: &str) -> Result<usize, ()> {
    let file = SourceFile::parse(code, Edition::Edition2024);
    let unfinished = file.errors().iter().any(|error| {
        let text = error.to_string().to_lowercase();
        ["missing trailing `\"`", "unterminated"].iter().any(|sign| text.contains(sign))
    });
    let mut open = vec![];
    for token in file.syntax_node().descendants_with_tokens().filter_map(|element| element.into_token()) {
        let closes = match token.kind() {
            kind @ (SyntaxKind::L_PAREN | SyntaxKind::L_BRACK | SyntaxKind::L_CURLY) => {
                open.push(kind);
                continue;
            }
            SyntaxKind::R_PAREN => SyntaxKind::L_PAREN,
            SyntaxKind::R_BRACK => SyntaxKind::L_BRACK,
            SyntaxKind::R_CURLY => SyntaxKind::L_CURLY,
            _ => continue,
        };
        if open.pop() != Some(closes) {
            return Err(());
        }
    }
    Ok(open.len() + usize::from(unfinished))
}

/// The source of a crate without the private methods of its types, which nobody outside can call: rust-analyzer would offer them.
pub fn public(source: &str) -> String {
    let file = SourceFile::parse(source, Edition::Edition2024).tree();
    let blocks =
        file.syntax().descendants().filter_map(ast::Impl::cast).filter(|block| block.trait_().is_none());
    let items = blocks.filter_map(|block| block.assoc_item_list()).flat_map(|list| list.assoc_items());
    let private = items.filter(|item| match item {
        ast::AssocItem::Fn(function) => function.visibility().is_none_or(|how| how.syntax().text() != "pub"),
        _ => false,
    });
    edited(
        source,
        private.map(|item| {
            let range = item.syntax().text_range();
            (range.start().into(), range.end().into(), String::new())
        }),
    )
}

/// What the names begin with that ask for types.
pub const QUESTION: &str = "lowbit_asks_";

/// What the type of variable `name` of the `index`th statement is asked by.
pub fn question(index: usize, name: &str) -> String {
    format!("{QUESTION}{index}_{name}")
}

/// The code, with a variable beside each whose type tells that of the other.
pub fn asking(code: &str, lets: &[Let]) -> String {
    edited(
        code,
        lets.iter().enumerate().map(|(index, statement)| {
            let asked = statement.variables.iter().map(|(name, _)| {
                format!(" let {} = ::std::hint::black_box(&{name});", question(index, name))
            });
            (statement.end, statement.end, asked.collect())
        }),
    )
}

/// The code with its types written down. Variables whose type has no name are bound in a macro, where evcxr does not see
/// them: the cell can use them, and later cells cannot.
pub fn typed(code: &str, lets: &[Let], types: &BTreeMap<String, Type>) -> String {
    let mut edits = vec![];
    for (index, statement) in lets.iter().enumerate() {
        let of = |name: &str| types.get(&question(index, name));
        let nameless =
            statement.variables.iter().any(|(name, _)| matches!(of(name), Some(Type::Nameless(_))));
        if let (Some((from, to)), [(name, _)], false) = (statement.place, &statement.variables[..], nameless)
        {
            if let Some(Type::Named(ty)) = of(name) {
                edits.push((from, to, format!(": {ty}")));
            }
            continue;
        }
        let again = statement.variables.iter().filter_map(|(name, mutable)| match of(name) {
            Some(Type::Named(ty)) => {
                Some(format!(" let {}{name}: {ty} = {name};", if *mutable { "mut " } else { "" }))
            }
            _ => None,
        });
        let again: String = again.collect();
        if nameless {
            edits.push((statement.start, statement.start, "lowbit::unkept!(".into()));
            edits.push((statement.end, statement.end, format!(");{again}")));
        } else {
            edits.push((statement.end, statement.end, again));
        }
    }
    edited(code, edits)
}

/// Takes references for what later cells cannot have: they may borrow from a variable, which moves between cells. False if
/// there are none.
pub fn borrowed(types: &mut BTreeMap<String, Type>) -> bool {
    let mut any = false;
    for found in types.values_mut() {
        if let Type::Named(ty) = found
            && (ty.contains('&') || ty.contains("'_"))
        {
            *found = Type::Nameless(format!(
                "borrowed ({ty}); to keep it, make it its own: `.clone()`, `.to_owned()`"
            ));
            any = true;
        }
    }
    any
}

/// The variables of these statements that later cells cannot have, with what their types are.
pub fn unkept(lets: &[Let], types: &BTreeMap<String, Type>) -> Vec<(String, String)> {
    let all = lets.iter().enumerate().flat_map(|(index, statement)| {
        statement.variables.iter().map(move |(name, _)| (name, question(index, name)))
    });
    all.filter_map(|(name, question)| match types.get(&question) {
        Some(Type::Nameless(what)) => Some((name.clone(), what.clone())),
        _ => None,
    })
    .collect()
}

/// Text with pieces of it replaced: from which byte to which, by what; in order, none within another.
fn edited(text: &str, edits: impl IntoIterator<Item = (usize, usize, String)>) -> String {
    let (mut new, mut at) = (String::new(), 0);
    for (from, to, by) in edits {
        new += &text[at..from];
        new += &by;
        at = to;
    }
    new + &text[at..]
}

#[cfg(test)]
mod tests;
