//! What was measured, and how it is shown.

use std::io::Write as _;

/// One row of the table.
#[derive(Debug)]
struct Figure {
    scenario: &'static str,
    what: String,
    measured: String,
    bar: String,
    reached: &'static str,
}

/// All rows and remarks so far.
#[derive(Debug)]
pub(crate) struct Report {
    quick: bool,
    figures: Vec<Figure>,
    remarks: Vec<String>,
}

/// How good is good enough.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    AtLeast(f64),
    LessThan(f64),
    /// It is reported, no more.
    None,
}

impl Report {
    pub(crate) fn new(quick: bool) -> Self {
        Self {
            quick,
            figures: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// A figure with its unit (`" ms"`), shown with two decimals below 10 and none above 1,000.
    pub(crate) fn figure(
        &mut self,
        scenario: &'static str,
        what: &str,
        value: f64,
        unit: &str,
        bar: Bar,
    ) {
        let (bar, reached) = match bar {
            Bar::AtLeast(bar) => (format!("≥ {}{unit}", number(bar)), verdict(value >= bar)),
            Bar::LessThan(bar) => (format!("< {}{unit}", number(bar)), verdict(value < bar)),
            Bar::None => (String::new(), ""),
        };
        self.figures.push(Figure {
            scenario,
            what: what.to_owned(),
            measured: format!("{}{unit}", number(value)),
            bar,
            reached,
        });
    }

    /// A line under the table: what a figure was made of.
    pub(crate) fn remark(&mut self, text: String) {
        progress(&text);
        self.remarks.push(text);
    }

    pub(crate) fn could_not_run(&mut self, scenario: &'static str) {
        self.figures.push(Figure {
            scenario,
            what: "could not run".to_owned(),
            measured: String::new(),
            bar: String::new(),
            reached: "",
        });
    }

    /// The table and the remarks, as Markdown, on standard output.
    pub(crate) fn print(&self) {
        let head = ["scenario", "figure", "measured", "bar", "reached"].map(str::to_owned);
        let rows = self.figures.iter().map(|figure| {
            [
                figure.scenario.to_owned(),
                figure.what.clone(),
                figure.measured.clone(),
                figure.bar.clone(),
                figure.reached.to_owned(),
            ]
        });
        let table: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
        let mut widths = [0; 5];
        for row in &table {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for (number, row) in table.iter().enumerate() {
            let cells = row.iter().zip(widths);
            text.push_str(&line(
                cells.map(|(cell, width)| format!(" {cell:<width$} ")),
            ));
            if number == 0 {
                text.push_str(&line(widths.map(|width| "-".repeat(width + 2)).into_iter()));
            }
        }
        for remark in &self.remarks {
            text.push_str("\n- ");
            text.push_str(remark);
        }
        if self.quick {
            text.push_str("\n- `--quick`: too little work for figures to compare");
        }
        if cfg!(debug_assertions) {
            text.push_str("\n- a debug build: no figures to compare");
        }
        text.push('\n');
        // Nobody may be reading any more.
        drop(std::io::stdout().lock().write_all(text.as_bytes()));
    }
}

fn line(cells: impl Iterator<Item = String>) -> String {
    format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
}

fn verdict(reached: bool) -> &'static str {
    if reached { "yes" } else { "no" }
}

fn number(value: f64) -> String {
    if value.abs() < 10.0 {
        format!("{value:.2}")
    } else if value.abs() < 1000.0 {
        format!("{value:.1}")
    } else {
        let whole = format!("{value:.0}");
        let mut grouped = String::new();
        for (position, digit) in whole.chars().enumerate() {
            if position > 0 && (whole.len() - position).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        grouped
    }
}

/// Tells what goes on, on standard error.
pub(crate) fn progress(text: &str) {
    // Nobody may be reading any more.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}
