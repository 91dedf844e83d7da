//! Aligned tables for the terminal and for pipes.

use comfy_table::{Attribute, Cell, CellAlignment, presets};
use std::fmt;
use std::io::IsTerminal;

/// A table: the first column holds labels, the others are aligned to the right.
pub struct Table {
    table: comfy_table::Table,
    columns: usize,
}

impl Table {
    /// A table with these column titles.
    pub fn new<const N: usize>(titles: [&str; N]) -> Table {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        // Emphasis follows stdout, where tables go; NO_COLOR asks for plain text.
        if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
            table.force_no_tty();
        }
        table.set_header(titles.map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if index == 0 { 0 } else { 1 }, 1));
            if index > 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Table { table, columns: N }
    }

    /// Aligns one column to the left: it holds words, not numbers.
    pub fn words(mut self, column: usize) -> Table {
        if let Some(column) = self.table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Left);
        }
        self
    }

    /// Adds a row; missing cells stay empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells: Vec<String> = cells
            .into_iter()
            .map(Into::into)
            .take(self.columns)
            .collect();
        self.table.add_row(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.table.lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
