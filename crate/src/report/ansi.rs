//! What programs write for terminals, as HTML: colours and weights, and lines that are written over.

use crate::display::html::escape;

/// Colours that are readable on white and on dark, in the terminal's order: black, red, green, yellow, blue, magenta, cyan,
/// white.
const COLORS: [&str; 8] =
    ["#7d8590", "#d1453b", "#3a9a4b", "#b08000", "#3d7edb", "#a35bc7", "#1f9aa8", "#8c959f"];

/// The text as HTML. Escapes that are no colours are left out, as a terminal that cannot obey them does.
pub(super) fn html(text: &str) -> String {
    let mut out = String::new();
    let mut style = Style::default();
    let text = overwritten(text);
    let mut rest = text.as_str();
    loop {
        let (plain, escaped) = rest.split_at(rest.find('\x1b').unwrap_or(rest.len()));
        match style.css() {
            css if css.is_empty() || plain.is_empty() => out += &escape(plain),
            css => out += &format!("<span style=\"{css}\">{}</span>", escape(plain)),
        }
        let Some(escaped) = escaped.strip_prefix('\x1b') else { return out };
        rest = match escaped.strip_prefix('[') {
            Some(control) => {
                let end = control.find(|c: char| ('@'..='~').contains(&c)).unwrap_or(control.len());
                if control[end..].starts_with('m') {
                    style.take(&control[..end]);
                }
                control.get(end + 1..).unwrap_or_default()
            }
            None => escaped,
        };
    }
}

/// Lines in which a carriage return begins anew: the last word holds.
fn overwritten(text: &str) -> String {
    let lines = text.split_inclusive('\n').map(|line| {
        let body = line.trim_end_matches(['\r', '\n']);
        let last = body.rsplit('\r').next().unwrap_or(body);
        format!("{last}{}", if line.ends_with('\n') { "\n" } else { "" })
    });
    lines.collect()
}

#[derive(Default)]
struct Style {
    color: Option<String>,
    bold: bool,
}

impl Style {
    fn take(&mut self, codes: &str) {
        let mut codes = codes.split(';').map(|code| code.parse::<usize>().unwrap_or(0));
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Self::default(),
                1 => self.bold = true,
                22 => self.bold = false,
                39 => self.color = None,
                30..=37 => self.color = Some(COLORS[code - 30].into()),
                90..=97 => self.color = Some(COLORS[code - 90].into()),
                38 | 48 => {
                    let color = match codes.next() {
                        Some(5) => codes.next().map(palette),
                        Some(2) => {
                            let mut part = || codes.next().unwrap_or(0).min(255);
                            Some(format!("#{:02x}{:02x}{:02x}", part(), part(), part()))
                        }
                        _ => None,
                    };
                    // A background is left to the page.
                    if code == 38 {
                        self.color = color;
                    }
                }
                _ => {}
            }
        }
    }

    fn css(&self) -> String {
        let color = self.color.iter().map(|color| format!("color:{color}"));
        color.chain(self.bold.then(|| "font-weight:600".into())).collect::<Vec<_>>().join(";")
    }
}

/// A colour of the palette of 256.
fn palette(code: usize) -> String {
    match code {
        0..=15 => COLORS[code % 8].into(),
        16..=231 => {
            let level = |n: usize| [0, 95, 135, 175, 215, 255][n % 6];
            let n = code - 16;
            format!("#{:02x}{:02x}{:02x}", level(n / 36), level(n / 6), level(n))
        }
        _ => {
            let grey = 8 + 10 * (code.min(255) - 232);
            format!("#{grey:02x}{grey:02x}{grey:02x}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn colours_become_spans_and_other_escapes_nothing() {
        let red = format!("<span style=\"color:{};font-weight:600\">no &lt;T&gt;</span> so", COLORS[1]);
        assert_eq!(html("\x1b[31;1mno <T>\x1b[0m so"), red);
        assert_eq!(html("\x1b[38;5;196mx\x1b[39my\x1b[2Kz"), "<span style=\"color:#ff0000\">x</span>yz");
        assert_eq!(html("\x1b[38;2;1;2;300mx"), "<span style=\"color:#0102ff\">x</span>");
        assert_eq!(html("10 %\r20 %\r\nend"), "20 %\nend");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\x1b\\[0-9;m<a\r\né]{0,30}") {
            let _ = html(&text);
        }
    }
}
