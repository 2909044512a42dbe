//! The rules of the house that no lint knows: who may name whom, how long a file may be, and
//! where time, randomness and the environment come in.
//!
//! The sources are read as text, see [`rust_text`]. Each rule is a function from a source to its
//! faults, so that [`trials`] can show that it finds what it is there to find.

#[path = "architecture/rust_text.rs"]
mod rust_text;
#[path = "architecture/trials.rs"]
mod trials;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use rust_text::{CodePath, code, paths};

const LONGEST_FILE: usize = 500;
const LONGEST_MAIN: usize = 40;
const LONGEST_ARCHITECTURE_PAGE: usize = 200;

/// Each layer, and what it may name of this crate.
const LAYERS: [(&str, &[&str]); 5] = [
    ("domain", &["domain", "shared"]),
    ("application", &["application", "domain", "shared"]),
    (
        "infrastructure",
        &["infrastructure", "application", "domain", "shared"],
    ),
    (
        "presentation",
        &["presentation", "app", "application", "domain", "shared"],
    ),
    ("shared", &["shared"]),
];

/// What does I/O; the domain does none.
const IO_CRATES: [&str; 6] = [
    "async_nats",
    "axum",
    "hyper_util",
    "metrics",
    "sqlx",
    "tokio",
];

/// The composition root: it sees all layers.
const ROOT_MODULES: [&str; 3] = ["app", "lib", "main"];

// ---- The rules on the sources as they are ------------------------------------------------

#[test]
fn each_layer_names_only_the_layers_it_may() {
    check(
        source_files(),
        layer_faults,
        "see `Layers` in docs/ARCHITECTURE.md",
    );
}

#[test]
fn the_domain_does_no_io() {
    check(
        source_files(),
        io_faults,
        "the domain is pure: what needs I/O is a port in `application`, implemented in `infrastructure`",
    );
}

#[test]
fn every_source_file_belongs_to_a_layer_or_the_composition_root() {
    check(
        source_files(),
        home_faults,
        "put it into the layer it belongs to",
    );
}

#[test]
fn time_ids_and_randomness_are_made_in_the_clock_alone() {
    check(
        source_files(),
        clock_faults,
        "take it as an argument, or ask the clock port",
    );
}

#[test]
fn the_environment_is_read_in_the_configuration_alone() {
    check(
        source_files(),
        environment_faults,
        "add it to `src/shared/config`",
    );
}

#[test]
fn no_lint_is_switched_off_without_a_reason() {
    check(
        rust_files(),
        allow_faults,
        "write `#[expect(lint, reason = \"…\")]`",
    );
}

#[test]
fn no_file_is_too_long() {
    check(rust_files(), length_faults, "one idea a file: split it");
}

#[test]
fn the_architecture_page_stays_short() {
    let path = "docs/ARCHITECTURE.md";
    let page = fs::read_to_string(root().join(path)).unwrap_or_default();
    let lines = page.lines().count();
    assert!(lines > 0, "{path} is missing or empty");
    assert!(
        lines <= LONGEST_ARCHITECTURE_PAGE,
        "{path} has {lines} lines, at most {LONGEST_ARCHITECTURE_PAGE}: move detail next to the code",
    );
}

// ---- The rules ---------------------------------------------------------------------------

#[derive(Debug)]
struct Source {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// `["domain", "entities", "webhook"]` for `src/domain/entities/webhook.rs`.
    fn module(&self) -> Vec<&str> {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inner = inner.strip_suffix(".rs").unwrap_or(inner);
        let mut module: Vec<&str> = inner.split('/').collect();
        if module.last() == Some(&"mod") {
            module.pop();
        }
        module
    }

    fn layer(&self) -> &str {
        self.module().first().copied().unwrap_or_default()
    }

    fn paths(&self) -> Vec<CodePath> {
        paths(&code(&self.text))
    }
}

#[derive(Debug, PartialEq)]
struct Fault {
    line: usize,
    what: String,
}

fn layer_faults(source: &Source) -> Vec<Fault> {
    let Some((layer, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == source.layer()) else {
        return Vec::new();
    };
    let module = source.module();
    source
        .paths()
        .into_iter()
        .filter_map(|path| {
            let named = module_of_this_crate(&path.segments, &module)?;
            (!allowed.contains(&named)).then(|| Fault {
                line: path.line,
                what: format!("`{layer}` names `{named}`: `{}`", path.segments.join("::")),
            })
        })
        .collect()
}

/// The first module below the crate's root that a path leads to, where it leads there at all.
fn module_of_this_crate<'a>(segments: &'a [String], module: &[&str]) -> Option<&'a str> {
    match segments.first().map(String::as_str)? {
        "crate" | "integration_worker" => segments.get(1).map(String::as_str),
        "self" | "super" => {
            let up = segments
                .iter()
                .filter(|segment| *segment == "super")
                .count();
            let rest = segments
                .iter()
                .find(|segment| *segment != "self" && *segment != "super");
            (up >= module.len()).then_some(rest?.as_str())
        }
        _ => None,
    }
}

fn io_faults(source: &Source) -> Vec<Fault> {
    if source.layer() != "domain" {
        return Vec::new();
    }
    faults(source, |path| {
        let first = path.first()?;
        IO_CRATES
            .contains(&first.as_str())
            .then(|| format!("the domain uses `{first}`"))
    })
}

fn home_faults(source: &Source) -> Vec<Fault> {
    let home = source.layer();
    let known = LAYERS.iter().any(|(layer, _)| *layer == home) || ROOT_MODULES.contains(&home);
    let what = || format!("`{home}` is neither a layer nor the composition root");
    if known {
        Vec::new()
    } else {
        vec![Fault {
            line: 1,
            what: what(),
        }]
    }
}

fn clock_faults(source: &Source) -> Vec<Fault> {
    const MADE: [[&str; 2]; 6] = [
        ["Utc", "now"],
        ["Local", "now"],
        ["SystemTime", "now"],
        ["Uuid", "now_v7"],
        ["Uuid", "new_v4"],
        ["rand", "rng"],
    ];
    if source.path == "src/infrastructure/clock.rs" {
        return Vec::new();
    }
    faults(source, |path| {
        let [a, b] = MADE.into_iter().find(|pair| has_pair(path, pair))?;
        Some(format!("`{a}::{b}` outside `src/infrastructure/clock.rs`"))
    })
}

fn environment_faults(source: &Source) -> Vec<Fault> {
    if source.module().starts_with(&["shared", "config"]) {
        return Vec::new();
    }
    faults(source, |path| {
        ["var", "var_os", "vars", "vars_os"]
            .into_iter()
            .find(|function| has_pair(path, &["env", function]))
            .map(|function| format!("`env::{function}` outside `src/shared/config`"))
    })
}

fn allow_faults(source: &Source) -> Vec<Fault> {
    let code = code(&source.text);
    // An attribute may be broken over lines and hide in a `cfg_attr`.
    code.match_indices("allow")
        .filter(|(at, word)| {
            let open = code
                .get(at + word.len()..)
                .is_some_and(|r| r.trim_start().starts_with('('));
            open && in_attribute(code.get(..*at).unwrap_or_default())
        })
        .map(|(at, _)| Fault {
            line: code.get(..at).unwrap_or_default().matches('\n').count() + 1,
            what: "an `allow` attribute".to_owned(),
        })
        .collect()
}

/// Whether what is written so far ends inside `#[…`, before a word.
fn in_attribute(before: &str) -> bool {
    let Some(start) = before.rfind("#[").max(before.rfind("#![")) else {
        return false;
    };
    let inside = before.get(start..).unwrap_or_default();
    let whole_word = inside.ends_with(|c: char| !c.is_alphanumeric() && c != '_');
    whole_word && inside.matches('[').count() > inside.matches(']').count()
}

fn length_faults(source: &Source) -> Vec<Fault> {
    let most = if source.path == "src/main.rs" {
        LONGEST_MAIN
    } else {
        LONGEST_FILE
    };
    let lines = source.text.lines().count();
    let what = || format!("{lines} lines, at most {most}");
    if lines > most {
        vec![Fault {
            line: lines,
            what: what(),
        }]
    } else {
        Vec::new()
    }
}

fn faults(source: &Source, judge: impl Fn(&[String]) -> Option<String>) -> Vec<Fault> {
    let judged = source.paths().into_iter();
    judged
        .filter_map(|path| {
            judge(&path.segments).map(|what| Fault {
                line: path.line,
                what,
            })
        })
        .collect()
}

fn has_pair(path: &[String], pair: &[&str; 2]) -> bool {
    path.windows(2).any(|two| two == pair)
}

// ---- Finding files -----------------------------------------------------------------------

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn source_files() -> Vec<Source> {
    rust_files()
        .into_iter()
        .filter(|file| file.path.starts_with("src/"))
        .collect()
}

fn rust_files() -> Vec<Source> {
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches"] {
        collect(&root().join(folder), &mut files);
    }
    assert!(files.len() > 2, "the sources were not found");
    files
}

fn collect(folder: &Path, files: &mut Vec<Source>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file is readable UTF-8");
            let inner = path
                .strip_prefix(root())
                .expect("it lies in the repository");
            files.push(Source::new(
                &inner.to_string_lossy().replace('\\', "/"),
                &text,
            ));
        }
    }
}

fn check(files: Vec<Source>, rule: impl Fn(&Source) -> Vec<Fault>, advice: &str) {
    let mut report = String::new();
    for file in files {
        for Fault { line, what } in rule(&file) {
            writeln!(report, "  {}:{line}: {what}", file.path).expect("a string takes it");
        }
    }
    assert!(report.is_empty(), "\n{report}  => {advice}\n");
}
