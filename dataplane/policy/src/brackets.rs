//! Which bracket is open where a document stops being YAML: for messages only, so it need not understand all of YAML.

use crate::problem::Position;

/// The last `{` or `[` between two places that is not closed before the second.
pub(crate) fn last_open(text: &str, from: Position, to: Position) -> Option<(char, Position)> {
    let mut open: Vec<(char, Position)> = Vec::new();
    let mut quote = None;
    // What was read last, spaces apart: a bracket in the middle of a plain text opens nothing.
    let mut before = '\n';
    let lines = (1_u32..).zip(text.lines());
    let lines = lines.skip_while(|(line, _)| *line < from.line);
    for (line, text) in lines.take_while(|(line, _)| *line <= to.line) {
        let mut is_after_space = true;
        for (column, c) in (1_u32..).zip(text.chars()) {
            let at = Position { line, column };
            if at < from {
                continue;
            }
            if at >= to {
                break;
            }
            match (quote, c) {
                (Some('"'), '\\') if before != '\\' => {
                    before = c;
                    continue;
                }
                (Some(end), _) if c == end && !(end == '"' && before == '\\') => quote = None,
                (Some(_), _) => {}
                (None, '#') if is_after_space => break,
                (None, '"' | '\'') if is_start(before) => quote = Some(c),
                (None, '{' | '[') if !open.is_empty() || is_start(before) => open.push((c, at)),
                (None, '}' | ']') => {
                    // One of the other kind closes nothing: that is what is wrong.
                    let other = if c == '}' { '{' } else { '[' };
                    if open.last().is_some_and(|(bracket, _)| *bracket == other) {
                        open.pop();
                    }
                }
                (None, _) => {}
            }
            is_after_space = c == ' ' || c == '\t';
            if !is_after_space {
                before = c;
            }
        }
        before = if quote.is_some() { ' ' } else { '\n' };
    }
    open.pop()
}

fn is_start(before: char) -> bool {
    matches!(before, '\n' | ':' | '-' | ',' | '{' | '[' | '?')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_open_bracket_is_found() {
        let begin = Position { line: 1, column: 1 };
        for (text, expected) in [
            ("", None),
            ("a: b", None),
            ("a: [b", Some(('[', 1, 4))),
            ("a: [b]", None),
            ("a: [b]\nc: {d: [e]\n", Some(('{', 2, 4))),
            ("- {a: [b, c: [d], e}\n- f", Some(('[', 1, 7))),
            ("- {a: \"]}\", b: '}]'\n", Some(('{', 1, 3))),
            ("- {a: \"\\\"}\"\n", Some(('{', 1, 3))),
            ("- {a: b # }\n", Some(('{', 1, 3))),
            ("a: b{c[d\n", None),
            ("a: it's {\n", None),
            ("a: [ü, {\n", Some(('{', 1, 8))),
        ] {
            let end = Position {
                line: 99,
                column: 1,
            };
            let found = last_open(text, begin, end);
            let found = found.map(|(c, at)| (c, at.line, at.column));
            assert_eq!(found, expected, "{text}");
        }
        // Only what lies between the two places counts.
        let (from, to) = (
            Position { line: 1, column: 5 },
            Position { line: 2, column: 2 },
        );
        assert_eq!(last_open("a: [b\nc: {", from, to), None);
    }
}
