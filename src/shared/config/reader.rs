//! Reads single variables and collects what is wrong with them.

use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::SecretString;

use crate::shared::duration::parse_duration;

use super::{ConfigFaults, variables::default_of};

/// Longest file that is read: a certificate bundle or a key ring is far below.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The variables of an environment, and the faults met so far.
pub(super) struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    pub(super) faults: ConfigFaults,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            lookup,
            faults: ConfigFaults::default(),
        }
    }

    /// The value, trimmed; an empty one is none.
    pub(super) fn given(&self, name: &str) -> Option<String> {
        let value = (self.lookup)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// A secret, as it stands.
    pub(super) fn secret(&self, name: &str) -> Option<SecretString> {
        (self.lookup)(name)
            .filter(|value| !value.trim().is_empty())
            .map(SecretString::from)
    }

    /// The value or its default of the table, read by `parse`; what `parse` refuses is a fault, and
    /// what the fallback stands for is never seen.
    pub(super) fn parse<T>(
        &mut self,
        name: &'static str,
        fallback: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let given = self.given(name);
        let Some(text) = given.as_deref().or_else(|| default_of(name)) else {
            return fallback;
        };
        match parse(text) {
            Ok(value) => value,
            Err(problem) => {
                self.faults.add(name, problem);
                fallback
            }
        }
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, name: &'static str, range: RangeInclusive<usize>) -> usize {
        let (least, most) = (*range.start(), *range.end());
        self.parse(name, least, |text| {
            let number = text.parse().ok().filter(|number| range.contains(number));
            number.ok_or_else(|| format!("{text:?} is no whole number from {least} to {most}"))
        })
    }

    /// A number of bytes within bounds, with or without a unit.
    pub(super) fn bytes(&mut self, name: &'static str, range: RangeInclusive<usize>) -> usize {
        let (least, most) = (*range.start(), *range.end());
        self.parse(name, least, |text| {
            let bytes = parse_bytes(text).filter(|bytes| range.contains(bytes));
            bytes.ok_or_else(|| {
                let (least, most) = (show_bytes(least), show_bytes(most));
                format!("{text:?} is no size from {least} to {most}, such as 65536, 64KiB or 1MiB")
            })
        })
    }

    /// A duration within bounds, which are written as a user would.
    pub(super) fn duration(&mut self, name: &'static str, least: &str, most: &str) -> Duration {
        let bound = |text| parse_duration(text).unwrap_or_default();
        let range = bound(least)..=bound(most);
        self.parse(name, bound(least), |text| {
            let duration = parse_duration(text)
                .ok()
                .filter(|value| range.contains(value));
            duration.ok_or_else(|| {
                format!(
                    "{text:?} is no duration from {least} to {most}, such as 10s, 5m, 2h or 30d"
                )
            })
        })
    }

    /// The path of a file that can be read; its text goes through `check`.
    pub(super) fn file(
        &mut self,
        name: &'static str,
        check: impl FnOnce(&str) -> Result<(), String>,
    ) -> Option<PathBuf> {
        let path = PathBuf::from(self.given(name)?);
        if let Err(problem) = read_small(&path).and_then(|text| check(&text)) {
            self.faults
                .add(name, format!("{}: {problem}", path.display()));
        }
        Some(path)
    }
}

fn read_small(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let metadata = fs::metadata(path).map_err(cannot)?;
    if metadata.is_dir() {
        return Err("is a directory, not a file".to_owned());
    }
    if metadata.len() > MAX_FILE {
        return Err(format!("is longer than {}", show_bytes(4 * 1024 * 1024)));
    }
    fs::read_to_string(path).map_err(cannot)
}

/// Whether the text holds a PEM block of this kind, such as `CERTIFICATE` or `KEY`.
pub(super) fn is_pem(text: &str, kind: &str) -> Result<(), String> {
    let holds = text.lines().any(|line| {
        line.trim_start().starts_with("-----BEGIN ")
            && line.trim_end().ends_with(&format!("{kind}-----"))
    });
    if holds {
        Ok(())
    } else {
        Err(format!("holds no PEM block `-----BEGIN … {kind}-----`"))
    }
}

const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

fn parse_bytes(text: &str) -> Option<usize> {
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .unwrap_or((text, 1));
    number.trim_end().parse::<usize>().ok()?.checked_mul(unit)
}

fn show_bytes(bytes: usize) -> String {
    UNITS
        .iter()
        .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(
            || bytes.to_string(),
            |(name, unit)| format!("{}{name}", bytes / unit),
        )
}
