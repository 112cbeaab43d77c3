//! The figures as bars.

use std::fmt::Write;

use super::Row;

const LABEL: usize = 250;
const BAR: f64 = 330.0;
const LINE: usize = 18;

/// One group of bars for each figure, the longest of each as long as the others' longest.
pub(super) fn svg(rows: &[Row]) -> String {
    let mut body = String::new();
    let mut y = 10;
    for row in rows {
        y += 26;
        text(&mut body, 0, y, "bold", &format!("{} ({})", row.name, row.unit));
        let longest = row.values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        for (name, value) in &row.values {
            let width = BAR * value / longest.max(f64::MIN_POSITIVE);
            let colour = if name.starts_with("ours") { "#1f77b4" } else { "#b0b0b0" };
            // A string takes whatever is written to it.
            let _ = writeln!(
                body,
                r#"<rect x="{LABEL}" y="{}" width="{width:.1}" height="12" fill="{colour}"/>"#,
                y + LINE - 11
            );
            y += LINE;
            text(&mut body, 12, y, "normal", name);
            text(&mut body, LABEL + width as usize + 6, y, "normal", &format!("{value:.1}"));
        }
    }
    let (width, height) = (LABEL + BAR as usize + 70, y + 16);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n{body}</svg>\n"
    )
}

fn text(body: &mut String, x: usize, y: usize, weight: &str, what: &str) {
    let _ = writeln!(body, r#"<text x="{x}" y="{y}" font-weight="{weight}">{what}</text>"#);
}
