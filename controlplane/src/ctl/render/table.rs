//! Columns of text, as wide as what stands in them.

use super::clean;

/// A table: a header, and rows of as many cells. Cells of a column whose header begins with `>` stand to the right.
pub(crate) struct Table {
    header: Vec<String>,
    is_right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            is_right: header.iter().map(|name| name.starts_with('>')).collect(),
            header: header
                .iter()
                .map(|name| name.trim_start_matches('>').to_owned())
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; control characters are escaped.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cells = cells.into_iter().map(|cell| clean(&cell));
        self.rows.push(cells.collect());
    }

    /// The text; every line ends, and none in spaces.
    pub(crate) fn text(&self) -> String {
        let mut widths: Vec<usize> = self
            .header
            .iter()
            .map(|name| name.chars().count())
            .collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), is_right) in row.iter().zip(&widths).zip(&self.is_right) {
                let padded = if *is_right {
                    format!("{cell:>width$}  ")
                } else {
                    format!("{cell:<width$}  ")
                };
                line.push_str(&padded);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", ">COUNT", "NOTE"]);
        table.row(["a".into(), "7".into(), String::new()]);
        table.row(["längst\n".into(), "1000000".into(), "x y".into()]);
        let expected = "\
NAME           COUNT  NOTE
a                  7
längst\\u{a}  1000000  x y
";
        assert_eq!(table.text(), expected);
    }
}
