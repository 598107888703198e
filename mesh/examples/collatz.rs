//! The longest Collatz sequences: collatz [BELOW]
//!
//! From n comes n / 2 if that is whole, else 3 n + 1, and so on until 1. For each start below BELOW
//! (15,000,000 by default) the sequence is walked until it meets a start whose length is known: lengths
//! are kept in a HashMap. A line tells of each twentieth of the way; /out/records.txt has each start
//! that beats all before it: the start, the length of its sequence, and the highest number in it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::process::exit;

const BELOW: u64 = 15_000_000;
const BELOW_MAX: u64 = 1_000_000_000;
/// Lengths that are kept: of the smallest starts, which are met most often.
const KEPT_MAX: u64 = 1 << 20;
const PARTS: u64 = 20;

/// How many numbers a sequence has, and the highest of them.
#[derive(Clone, Copy)]
struct Walk {
    length: u64,
    peak: u64,
}

fn walk(start: u64, known: &HashMap<u64, Walk>) -> Walk {
    let (mut n, mut length, mut peak) = (start, 1, start);
    while n != 1 {
        if n < start {
            if let Some(rest) = known.get(&n) {
                return Walk { length: length - 1 + rest.length, peak: peak.max(rest.peak) };
            }
        }
        n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
        peak = peak.max(n);
        length += 1;
    }
    Walk { length, peak }
}

fn search(below: u64) -> io::Result<()> {
    let mut records = File::create("/out/records.txt")?;
    let mut known = HashMap::new();
    let mut best = Walk { length: 0, peak: 0 };
    let (mut longest, mut total, mut part) = (0, 0, 1);
    for start in 1..below {
        let found = walk(start, &known);
        if start < KEPT_MAX {
            known.insert(start, found);
        }
        total += found.length;
        if found.length > best.length {
            best = found;
            longest = start;
            writeln!(records, "{} {} {}", start, found.length, found.peak)?;
        }
        if start >= below * part / PARTS {
            println!("below {}: the longest begins at {}, {} numbers", start, longest, best.length);
            part += 1;
        }
    }
    records.sync_all()?;
    println!("{} numbers in {} sequences, the longest from {}: {}", total, below - 1, longest, best.length);
    Ok(())
}

fn main() {
    let below = match std::env::args().nth(1) {
        None => Ok(BELOW),
        Some(text) => text.parse(),
    };
    match below {
        Ok(below) if (2..=BELOW_MAX).contains(&below) => {
            if let Err(error) = search(below) {
                eprintln!("collatz: {}", error);
                exit(1);
            }
        }
        _ => {
            eprintln!("collatz: usage: collatz [BELOW], a whole number of 2 to {}", BELOW_MAX);
            exit(1);
        }
    }
}
