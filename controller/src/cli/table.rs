//! Plain columns for people: no frame, nothing that gets in the way of `grep` and `awk`.

use comfy_table::{ContentArrangement, Table, presets::NOTHING};

/// Width of a terminal nobody made larger.
const WIDTH: u16 = 80;

/// `header` and `rows` in aligned columns, two spaces apart, each row on one line.
pub(crate) fn of(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    text(plain(header, rows))
}

/// The same for sentences: cells are wrapped so that no line is longer than 80 columns.
pub(super) fn wrapped(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = plain(header, rows);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    text(table)
}

fn plain(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn text(table: Table) -> String {
    let lines: Vec<_> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_wrapped_at_80_columns_and_lists_never() {
        let rows = || [vec!["reason".to_owned(), "so many words ".repeat(20)]].into_iter();
        assert!(wrapped(&["CHECK", "RESULT"], rows()).lines().all(|line| line.chars().count() <= 80));
        assert_eq!(of(&["CHECK", "RESULT"], rows()).lines().count(), 2);
    }
}
