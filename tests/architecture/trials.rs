//! Every rule is shown a few lines of Rust that it must refuse, and some that it must not.

use super::{
    Fault, LONGEST_FILE, LONGEST_MAIN, Source, allow_faults, clock_faults, environment_faults,
    home_faults, io_faults, layer_faults, length_faults,
};

/// The lines on which a rule finds a fault.
fn lines(rule: impl Fn(&Source) -> Vec<Fault>, path: &str, text: &str) -> Vec<usize> {
    rule(&Source::new(path, text))
        .into_iter()
        .map(|fault| fault.line)
        .collect()
}

#[test]
fn a_layer_that_names_a_forbidden_one_is_found() {
    for (path, text, expected) in [
        (
            "src/domain/a.rs",
            "use crate::domain::b;\nuse crate::shared::c;",
            vec![],
        ),
        (
            "src/domain/a.rs",
            "use crate::domain::b;\nuse crate::application::C;",
            vec![2],
        ),
        (
            "src/domain/a.rs",
            "use crate::{\n  shared::x,\n  app::{y, z},\n};",
            vec![3, 3],
        ),
        (
            "src/domain/a.rs",
            "fn f() { crate::infrastructure::f() }",
            vec![1],
        ),
        (
            "src/domain/a.rs",
            "/// See [`crate::infrastructure`].\nstruct A;",
            vec![],
        ),
        ("src/domain/mod.rs", "use super::application::X;", vec![1]),
        (
            "src/domain/a/b.rs",
            "use super::super::super::application::X;",
            vec![1],
        ),
        ("src/domain/a/b.rs", "use super::application::X;", vec![]),
        (
            "src/application/a.rs",
            "use crate::presentation::X;",
            vec![1],
        ),
        (
            "src/application/a.rs",
            "use crate::{application::A, domain::B, shared::C};",
            vec![],
        ),
        (
            "src/infrastructure/a.rs",
            "use crate::presentation::X;",
            vec![1],
        ),
        ("src/infrastructure/a.rs", "use crate::app::X;", vec![1]),
        (
            "src/infrastructure/a.rs",
            "use crate::application::X;",
            vec![],
        ),
        (
            "src/presentation/a.rs",
            "use crate::infrastructure::X;",
            vec![1],
        ),
        ("src/presentation/cli/a.rs", "use crate::app::X;", vec![]),
        ("src/shared/a.rs", "use crate::domain::X;", vec![1]),
        (
            "src/app.rs",
            "use crate::{infrastructure::A, presentation::B};",
            vec![],
        ),
    ] {
        assert_eq!(lines(layer_faults, path, text), expected, "{path}: {text}");
    }
}

#[test]
fn io_in_the_domain_is_found() {
    for (path, text, expected) in [
        ("src/domain/a.rs", "use tokio::sync::Mutex;", vec![1]),
        (
            "src/domain/a.rs",
            "use std::fmt;\n#[derive(sqlx::FromRow)]\nstruct A;",
            vec![2],
        ),
        ("src/domain/a.rs", "use {std::fmt, axum::Router};", vec![1]),
        ("src/domain/a.rs", "metrics::counter!(\"a\");", vec![1]),
        (
            "src/domain/a.rs",
            "use crate::shared::metrics::Name;",
            vec![],
        ),
        ("src/application/a.rs", "use tokio::sync::Mutex;", vec![]),
    ] {
        assert_eq!(lines(io_faults, path, text), expected, "{path}: {text}");
    }
}

#[test]
fn a_stray_file_is_found() {
    assert_eq!(lines(home_faults, "src/utils.rs", ""), [1]);
    assert_eq!(lines(home_faults, "src/helpers/mod.rs", ""), [1]);
    assert_eq!(lines(home_faults, "src/app/wiring.rs", ""), []);
    assert_eq!(lines(home_faults, "src/shared/mod.rs", ""), []);
}

#[test]
fn a_clock_outside_its_file_is_found() {
    for (text, expected) in [
        ("let now = chrono::Utc::now();", vec![1]),
        ("let ids = iter.map(Uuid::now_v7);", vec![1]),
        ("use rand::{Rng, rng};", vec![1]),
        ("let at = std::time::SystemTime::now();", vec![1]),
        (
            "fn f(now: DateTime<Utc>) { clock.now(); Instant::now(); }",
            vec![],
        ),
    ] {
        assert_eq!(
            lines(clock_faults, "src/application/a.rs", text),
            expected,
            "{text}"
        );
        assert_eq!(
            lines(clock_faults, "src/infrastructure/clock.rs", text),
            [],
            "{text}"
        );
    }
}

#[test]
fn reading_the_environment_elsewhere_is_found() {
    for (text, expected) in [
        ("std::env::var(NAME)", vec![1]),
        ("use std::env;\nenv::vars_os()", vec![2]),
        ("use std::env::{self, var};", vec![1]),
        ("env!(NAME); std::env::temp_dir(); std::env::args()", vec![]),
    ] {
        assert_eq!(
            lines(environment_faults, "src/app.rs", text),
            expected,
            "{text}"
        );
        assert_eq!(
            lines(environment_faults, "src/shared/config/mod.rs", text),
            [],
            "{text}"
        );
    }
}

#[test]
fn an_allow_attribute_is_found() {
    for (text, expected) in [
        ("#[allow(dead_code)]", vec![1]),
        ("#![allow(dead_code)]", vec![1]),
        (
            "fn f() {}\n#[cfg_attr(\n  test,\n  allow(dead_code),\n)]",
            vec![4],
        ),
        ("#[expect(dead_code, reason = \"#[allow(x)]\")]", vec![]),
        ("#[test]\nfn f() { allow(1); disallow(2) }", vec![]),
        ("// #[allow(dead_code)]", vec![]),
    ] {
        assert_eq!(lines(allow_faults, "src/app.rs", text), expected, "{text}");
    }
}

#[test]
fn a_long_file_is_found() {
    assert_eq!(
        lines(length_faults, "src/main.rs", &"\n".repeat(LONGEST_MAIN)),
        []
    );
    assert_eq!(
        lines(length_faults, "src/main.rs", &"\n".repeat(LONGEST_MAIN + 1)),
        [41]
    );
    assert_eq!(
        lines(length_faults, "tests/a.rs", &"\n".repeat(LONGEST_FILE)),
        []
    );
    assert_eq!(
        lines(length_faults, "tests/a.rs", &"\n".repeat(LONGEST_FILE + 1)),
        [501]
    );
}
