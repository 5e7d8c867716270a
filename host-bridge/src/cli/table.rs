//! Tables for people: aligned columns, no borders, no colours.

use comfy_table::{Table, presets};

/// A table with this heading.
pub(crate) fn of<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heading);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let text = of(
            ["NAME", "STATE"],
            [["a".to_owned(), "running".to_owned()], ["brave-otter".to_owned(), "x".to_owned()]],
        );
        assert_eq!(text, "NAME         STATE\na            running\nbrave-otter  x");
    }
}
