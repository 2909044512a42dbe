use serde_json::json;

use super::*;

fn fields(value: Value) -> Fields {
    match value {
        Value::Object(map) => Fields::new(map, ""),
        other => panic!("not an object: {other}"),
    }
}

fn paths(faults: Faults) -> Vec<String> {
    faults.into_vec().into_iter().map(|f| f.path).collect()
}

#[test]
fn every_fault_is_told_at_once_with_its_path() {
    let mut f = fields(json!({
        "name": " ", "tags": ["a", "a", 1, "b"], "on": 1, "n": 11, "id": "x", "at": "today",
        "wait": "1 s", "inner": { "deep": 1, "more": { "n": "x" } }, "other": 1,
    }));
    f.need(&["name", "missing"]);
    assert_eq!(f.text("name", Text::Line(5)), None);
    assert_eq!(f.texts("tags", 0..=4, |_| None), None);
    assert_eq!(f.boolean("on"), None);
    assert_eq!(f.integer("n", 0..=10), None);
    assert_eq!(f.uuid("id"), None);
    assert_eq!(f.time("at"), None);
    assert_eq!(f.duration("wait", 1..=10), None);
    let inner = f.object("inner", |inner| {
        inner.object("more", |more| more.integer("n", 0..=1))
    });
    assert_eq!(inner, None);
    assert_eq!(
        paths(f.finish()),
        [
            "missing",
            "name",
            "tags[1]",
            "tags[2]",
            "on",
            "n",
            "id",
            "at",
            "wait",
            "inner.more.n",
            "inner.deep",
            "other"
        ]
    );
}

#[test]
fn a_line_has_something_to_see() {
    for (text, good) in [
        ("a", true),
        ("\u{200b}a", true),
        ("\u{1f600}", true),
        ("", false),
        (" \u{a0}\u{3000}", false),
        ("\u{200b}\u{feff}", false),
        ("\u{202e}\u{2066}", false),
        ("\u{ad}\u{3164}", false),
        ("\u{7}", false),
        ("a\u{7}", false),
    ] {
        assert_eq!(Text::Line(5).problem(text).is_none(), good, "{text:?}");
    }
}

#[test]
fn an_unknown_field_names_the_allowed_ones() {
    let mut f = fields(json!({ "nme": 1 }));
    f.text("name", Text::Line(5));
    f.boolean("on");
    let faults = f.finish().into_vec();
    assert_eq!(faults[0].message, "unknown field; allowed: name, on");
}

#[test]
fn texts_keep_their_limits() {
    for (rule, text, good) in [
        (Text::Line(3), "abc", true),
        (Text::Line(3), "äöü", true),
        (Text::Line(3), "abcd", false),
        (Text::Line(3), "", false),
        (Text::Line(3), "  ", false),
        (Text::Line(3), "a\n", false),
        (Text::Line(3), "a\0", false),
        (Text::Block(3), "", true),
        (Text::Block(3), "a\n\t", true),
        (Text::Block(3), "a\0", false),
        (Text::Block(3), "abcd", false),
    ] {
        assert_eq!(rule.problem(text).is_none(), good, "{rule:?} {text:?}");
    }
}

#[test]
fn a_duration_is_milliseconds_or_a_text_with_a_unit() {
    for (value, millis) in [
        (json!(1000), Some(1000)),
        (json!("5s"), Some(5000)),
        (json!("1m"), Some(60_000)),
        (json!(999), None),
        (json!("2m"), None),
        (json!(1000.5), None),
        (json!(-1), None),
        (json!("5"), None),
        (json!(null), None),
    ] {
        let read = duration(&value, &(1000..=60_000)).ok();
        assert_eq!(read, millis.map(Duration::from_millis), "{value}");
    }
}

#[test]
fn null_removes_a_removable_text_and_is_a_fault_elsewhere() {
    let mut f = fields(json!({ "description": null, "name": null }));
    assert_eq!(f.removable_text("description", Text::Block(9)), Some(None));
    assert_eq!(f.text("name", Text::Line(9)), None);
    assert_eq!(paths(f.finish()), ["name"]);
}

#[test]
fn a_field_of_any_length_makes_a_short_path() {
    let f = fields(json!({ "x".repeat(5000): 1 }));
    assert_eq!(paths(f.finish())[0].len(), 100);
}
