//! What a run says: a table for people, and every figure with its bound as JSON.

use std::collections::BTreeSet;

use moat_tests::measure::{Others, Spread};
use serde_json::{Value, json};

/// One measured value.
#[derive(Debug)]
pub(crate) struct Figure {
    /// `calls.200.p99.moat:nginx`
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) spread: Spread,
    pub(crate) bound: Option<Bound>,
}

/// What a value is to reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn kept(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    missing: BTreeSet<&'static str>,
    notes: Vec<String>,
}

impl Report {
    /// Adds a figure of several values: its median counts.
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        spread: Spread,
        bound: Option<Bound>,
    ) {
        self.figures.push(Figure { name: name.into(), unit, spread, bound });
    }

    /// Adds a figure that has one value.
    pub(crate) fn one(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        bound: Option<Bound>,
    ) {
        self.add(name, unit, Spread { low: value, median: value, high: value }, bound);
    }

    /// A peer is not installed.
    pub(crate) fn missing(&mut self, names: &[&'static str]) {
        self.missing.extend(names);
    }

    /// Something that the reader has to know.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Are all bounds kept?
    pub(crate) fn kept(&self) -> bool {
        self.figures.iter().all(|figure| figure.bound.is_none_or(|bound| bound.kept(figure.spread.median)))
    }

    /// For people.
    pub(crate) fn text(&self, others: Others) -> String {
        let mut text = String::new();
        let width = self.figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        let mut part = "";
        for Figure { name, unit, spread: Spread { low, median, high }, bound } in &self.figures {
            let this = name.split('.').next().unwrap_or_default();
            if this != part {
                text.push('\n');
                part = this;
            }
            let range =
                if low < high { format!("({} to {})", short(*low), short(*high)) } else { String::new() };
            let judged = bound.map_or_else(String::new, |bound| {
                let verdict = if bound.kept(*median) { "kept" } else { "MISSED" };
                match bound {
                    Bound::AtMost(value) => format!("at most {}: {verdict}", short(value)),
                    Bound::AtLeast(value) => format!("at least {}: {verdict}", short(value)),
                }
            });
            let line = format!("{name:width$}  {:>9} {unit:7} {range:22} {judged}", short(*median));
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.push('\n');
        for note in &self.notes {
            text.push_str(&format!("{note}\n"));
        }
        for name in &self.missing {
            text.push_str(&format!("not installed, so not compared with: {name}\n"));
        }
        text.push_str(&format!(
            "others used {:.2} of {} processors meanwhile; only ratios within this run mean something\n",
            others.used, others.processors
        ));
        text
    }

    /// For programs.
    pub(crate) fn json(&self, others: Others) -> Value {
        let figures = self.figures.iter().map(|figure| {
            let Figure { name, unit, spread: Spread { low, median, high }, bound } = figure;
            let mut value = json!({ "name": name, "unit": unit, "median": median, "low": low, "high": high });
            match bound {
                Some(Bound::AtMost(most)) => value["at_most"] = json!(most),
                Some(Bound::AtLeast(least)) => value["at_least"] = json!(least),
                None => {}
            }
            if let Some(bound) = bound {
                value["kept"] = json!(bound.kept(*median));
            }
            value
        });
        json!({
            "figures": figures.collect::<Vec<_>>(), "missing": self.missing, "notes": self.notes,
            "others_used": others.used, "processors": others.processors,
        })
    }
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
