//! A table as RFC 4180 writes it. Pure.

use anyhow::ensure;

/// The records of a text, header included; empty lines are none.
pub(super) fn records(text: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut records = Vec::new();
    let mut record = Vec::new();
    let mut cell = String::new();
    let (mut quoted, mut was_quoted) = (false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quoted) {
            ('"', true) if chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            ('"', true) => quoted = false,
            ('"', false) if cell.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            (',', false) => {
                record.push(std::mem::take(&mut cell));
                was_quoted = false;
            }
            ('\r', false) if chars.peek() == Some(&'\n') => {}
            ('\n', false) => {
                end(&mut records, &mut record, &mut cell, was_quoted);
                was_quoted = false;
            }
            (c, _) => cell.push(c),
        }
    }
    ensure!(!quoted, "a quoted cell does not end");
    end(&mut records, &mut record, &mut cell, was_quoted);
    Ok(records)
}

fn end(records: &mut Vec<Vec<String>>, record: &mut Vec<String>, cell: &mut String, was_quoted: bool) {
    if !record.is_empty() || !cell.is_empty() || was_quoted {
        record.push(std::mem::take(cell));
        records.push(std::mem::take(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_commas_and_line_ends_are_content_where_they_are_quoted() {
        let found = records("a,b\r\n\"x, \"\"y\"\"\nz\",\n\n\"\",2").unwrap();
        assert_eq!(found, [["a", "b"], ["x, \"y\"\nz", ""], ["", "2"]]);
        assert!(records("a\n\"b").is_err());
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_as_it_was(cells in prop::collection::vec(".*", 1..5)) {
            let line: Vec<String> = cells.iter().map(|c| format!("\"{}\"", c.replace('"', "\"\""))).collect();
            prop_assert_eq!(records(&line.join(",")).unwrap(), [cells]);
        }
    }
}
