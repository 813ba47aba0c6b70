//! The figures for people.

use super::figures::{Figures, Head};

const COLUMNS: &str = "  offered/s achieved/s |     ack ms p50     p99    p99.9 | delivery ms p50     p99    p99.9 |  missing | µs each: servers generator | ";

/// What stands over the rows.
pub(super) fn head(head: &Head) -> String {
    let memory = head.rss_per_conn_kb.map_or(String::new(), |kb| format!(", {kb} KiB of the servers' memory each"));
    format!(
        "{} clients over {}, {} documents, {} bytes, ack level {}; connected in {} s{memory}\n\n{COLUMNS}",
        head.clients, head.transport, head.docs, head.size, head.ack, head.connect_s
    )
}

/// One step.
pub(super) fn row(figures: &Figures) -> String {
    let ms = |value: Option<f64>| value.map_or("–".to_owned(), |ms| format!("{ms:.2}"));
    let us = |value: Option<f64>| value.map_or("–".to_owned(), |us| format!("{us:.1}"));
    let missing = figures.lost + figures.coalesced + figures.unacked + figures.unsent + figures.refused;
    let mut verdict = if figures.sustained { "sustained".to_owned() } else { "not sustained".to_owned() };
    match figures.limited_by {
        Some("others") => verdict.push_str(", disturbed by other programs"),
        Some(limit) => verdict.push_str(&format!(", limited by the {limit}")),
        None => {}
    }
    format!(
        "{:>11} {:>10} |{:>15} {:>7} {:>8} |{:>16} {:>7} {:>8} |{:>9} |{:>17} {:>9} | {verdict}",
        figures.offered,
        figures.achieved.round(),
        ms(figures.ack.p50),
        ms(figures.ack.p99),
        ms(figures.ack.p999),
        ms(figures.delivery.p50),
        ms(figures.delivery.p99),
        ms(figures.delivery.p999),
        missing,
        us(figures.cpu_us_per_pub),
        us(figures.gen_us_per_pub),
    )
}

/// The end of a search.
pub(super) fn summary(highest: Option<f64>) -> String {
    match highest {
        Some(rate) => format!("\nhighest sustained rate: {rate} instructions/s"),
        None => "\nno rate was sustained".to_owned(),
    }
}
