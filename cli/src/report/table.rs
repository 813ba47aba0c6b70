//! Box tables for terminals.

use super::cell::{Cell, Column};
use std::fmt::Write as _;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Widths come from so many rows; those behind them are cut to fit.
const ROWS_MEASURED: usize = 1_000;
/// A column is not made narrower than this.
const SHRUNK_MIN: usize = 12;
/// No cell needs more of a row than this, also where there is no end of room.
const CELL_MAX: usize = 4_096;

/// So much of a text as has a width, with an ellipsis if there is more.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let (mut out, mut used) = (String::new(), 0);
    for c in text.chars() {
        let more = c.width().unwrap_or(0);
        if used + more + 1 > width {
            break;
        }
        used += more;
        out.push(c);
    }
    out.push('…');
    out
}

/// A table that is drawn as it comes in.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    terminal: usize,
    /// Rows that are not drawn yet, because the widths are not known.
    waiting: Vec<Vec<(String, bool)>>,
    widths: Option<Vec<usize>>,
}

impl Table {
    /// For a terminal of so many columns.
    pub(super) fn new(columns: &[Column], terminal: usize) -> Table {
        let columns = columns.iter().filter(|column| column.heading.is_some()).copied().collect();
        Table { columns, terminal, waiting: Vec::new(), widths: None }
    }

    /// Takes in a row; gives back what can be drawn by now. Cells of columns that are not in tables must
    /// have been left out.
    pub(super) fn row(&mut self, cells: &[Cell], out: &mut String) {
        let shown = |cell: &Cell| (cell.shown().chars().take(CELL_MAX).collect(), cell.is_number());
        self.waiting.push(cells.iter().map(shown).collect());
        if self.widths.is_some() || self.waiting.len() == ROWS_MEASURED {
            self.draw(out);
        }
    }

    /// Draws what is left, and the last line; nothing if there was no row.
    pub(super) fn end(&mut self, out: &mut String) {
        self.draw(out);
        if let Some(widths) = &self.widths {
            rule(out, widths, ['└', '┴', '┘']);
        }
    }

    fn draw(&mut self, out: &mut String) {
        if self.waiting.is_empty() {
            return;
        }
        let begins = self.widths.is_none();
        let widths = self.widths.take().unwrap_or_else(|| self.measure());
        if begins {
            rule(out, &widths, ['┌', '┬', '┐']);
            let headings = self.columns.iter().map(|column| (column.heading.unwrap_or("").to_owned(), false));
            line(out, &widths, &headings.collect::<Vec<_>>());
            rule(out, &widths, ['├', '┼', '┤']);
        }
        for row in self.waiting.drain(..) {
            line(out, &widths, &row);
        }
        self.widths = Some(widths);
    }

    /// As wide as what is in them, and narrower if the terminal has no room: the widest first.
    fn measure(&self) -> Vec<usize> {
        let heading = |column: &Column| column.heading.map_or(0, |heading| heading.width());
        let mut widths: Vec<usize> = self.columns.iter().map(heading).collect();
        for row in &self.waiting {
            for (width, (text, _)) in widths.iter_mut().zip(row) {
                *width = (*width).max(text.width());
            }
        }
        let frame = 3 * widths.len() + 1;
        loop {
            let over = (widths.iter().sum::<usize>() + frame).saturating_sub(self.terminal);
            let shrinking = widths.iter_mut().zip(&self.columns).filter(|(_, column)| column.shrinks);
            let widest = shrinking.map(|(width, _)| width).max();
            match widest {
                Some(width) if over > 0 && *width > SHRUNK_MIN => *width -= 1,
                _ => return widths,
            }
        }
    }
}

fn rule(out: &mut String, widths: &[usize], [left, middle, right]: [char; 3]) {
    out.push(left);
    for (n, width) in widths.iter().enumerate() {
        if n > 0 {
            out.push(middle);
        }
        out.extend(std::iter::repeat_n('─', width + 2));
    }
    out.push(right);
    out.push('\n');
}

fn line(out: &mut String, widths: &[usize], row: &[(String, bool)]) {
    for (width, (text, is_number)) in widths.iter().zip(row) {
        let text = cut(text, *width);
        let pad = " ".repeat(width.saturating_sub(text.width()));
        let _ = if *is_number { write!(out, "│ {pad}{text} ") } else { write!(out, "│ {text}{pad} ") };
    }
    out.push_str("│\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] =
        [Column::new("n", "N"), Column::wide("document", "DOCUMENT"), Column::wide("body", "BODY")];

    fn drawn(rows: &[(u64, &str, &str)], terminal: usize) -> String {
        let (mut table, mut out) = (Table::new(&COLUMNS, terminal), String::new());
        for (n, document, body) in rows {
            let cells = [Cell::Number(*n), Cell::Text((*document).into()), Cell::Text((*body).into())];
            table.row(&cells, &mut out);
        }
        table.end(&mut out);
        out
    }

    #[test]
    fn a_table_is_as_wide_as_what_is_in_it() {
        let text = drawn(&[(1, "a", "x"), (10, "温度", "y")], 80);
        let expected = "\
┌────┬──────────┬──────┐
│ N  │ DOCUMENT │ BODY │
├────┼──────────┼──────┤
│  1 │ a        │ x    │
│ 10 │ 温度     │ y    │
└────┴──────────┴──────┘
";
        assert_eq!(text, expected);
        assert_eq!(drawn(&[], 80), "");
    }

    #[test]
    fn long_cells_are_cut_to_the_terminal() {
        let (long, wide) = ("x".repeat(300), "温".repeat(300));
        for terminal in [40, 41, 80, 200] {
            let text = drawn(&[(1, &long, "b"), (2, "d", &wide)], terminal);
            assert!(text.lines().all(|line| line.width() <= terminal), "{text}");
            assert_eq!(text.matches('…').count(), 2);
        }
    }

    #[test]
    fn rows_behind_those_measured_are_drawn_as_they_come() {
        let (mut table, mut out) = (Table::new(&COLUMNS, 80), String::new());
        let cells = |text: &str| [Cell::Number(1), Cell::Text(text.into()), Cell::Text("b".into())];
        for _ in 0..ROWS_MEASURED {
            table.row(&cells("a"), &mut out);
        }
        assert_eq!(out.lines().count(), ROWS_MEASURED + 3);
        out.clear();
        table.row(&cells(&"long".repeat(9)), &mut out);
        assert_eq!(out, "│ 1 │ longlon… │ b    │\n");
    }
}
