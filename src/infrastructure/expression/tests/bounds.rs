//! What expressions may take, and that nothing panics.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

#[test]
fn long_and_deep_expressions_are_refused() {
    let long = format!("'{}'", "a".repeat(MAX_EXPRESSION));
    assert_eq!(fault(&long), "must have at most 4096 bytes");
    let nested = |open: &str, inner: &str, close: &str| {
        let depth = 4000 / (open.len() + close.len());
        format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
    };
    for text in [
        nested("(", "1", ")"),
        nested("[", "1", "]"),
        nested("{'a':", "1", "}"),
        nested("!", "true", ""),
        nested("- ", "1", ""),
        nested("1+", "1", ""),
        nested("1<", "1", ""),
        nested("true?1:", "1", ""),
        nested("true?", "1", ":1"),
        nested("size(", "1", ")"),
        nested("", "data", ".a"),
        nested("", "data", "[0]"),
        nested("", "data", ".map(x,x)"),
        nested("data.map(x,", "x", ")"),
    ] {
        assert!(fault(&text).contains("nests deeper than 64"), "{text}");
    }
    // A chain of conditions is no nesting.
    let chain = vec!["id != ''"; 300].join(" && ");
    assert_eq!(made(&chain), Ok("true".to_owned()));
    assert_eq!(
        made(&vec!["id == ''"; 300].join(" || ")),
        Ok("false".to_owned())
    );
}

#[test]
fn a_bomb_meets_its_limit_soon() {
    let mut numbers = "[0".to_owned();
    for number in 1..20_000 {
        write!(numbers, ",{number}").unwrap();
    }
    let event = json_event(&format!(
        "{{\"list\":{numbers}],\"text\":\"{}\"}}",
        "a".repeat(10_000)
    ));
    for text in [
        "data.list.map(a, data.list.map(b, data.list.map(c, a)))",
        "data.list.all(a, data.list.exists(b, b < 0) || true)",
        "data.list.map(a, data.list + data.list)",
        "data.list.map(a, data.text + data.text)",
        "data.list.map(a, data.text.replace('a', data.text))",
        "data.list.map(a, data.text.split('a'))",
        "data.list.map(a, [a,a,a,a,a,a,a,a,a,a])",
        "data.list.map(a, data.list == data.list)",
        "data.list.filter(a, a in data.list)",
        "data.list.map(a, data.text.contains('b'))",
    ] {
        let started = std::time::Instant::now();
        let fault = made_of(&event, text).unwrap_err();
        assert!(
            fault.contains("takes more than 50000 steps") || fault.contains("builds more than"),
            "{text}: {fault}"
        );
        assert!(
            started.elapsed() < std::time::Duration::from_secs(5),
            "{text}"
        );
    }
    let doubling = (0..12).fold("data.text".to_owned(), |text, _| {
        format!("[{text}].map(x, x + x)[0]")
    });
    assert!(
        made_of(&event, &doubling)
            .unwrap_err()
            .contains("builds more than 4194304 bytes")
    );
}

#[test]
fn a_result_that_is_too_large_is_a_fault() {
    let event = json_event(&format!("{{\"text\":\"{}\"}}", "a".repeat(400_000)));
    assert!(made_of(&event, "[data.text, data]").is_ok());
    assert_eq!(
        made_of(&event, "[data.text, data.text, data]").unwrap_err(),
        "the result has more than 1048576 bytes (line 1, column 1)"
    );
}

#[test]
fn deep_data_is_a_fault_and_costs_no_stack() {
    let deep = json_event(&("[".repeat(200_000) + &"]".repeat(200_000)));
    assert_eq!(
        made_of(&deep, "size(data)").unwrap_err(),
        "data cannot be read: it nests deeper than 128 (line 1, column 6)"
    );
    assert_eq!(made_of(&deep, "type == ''"), Ok("false".to_owned()));
    let allowed = json_event(&("[".repeat(120) + &"]".repeat(120)));
    assert_eq!(made_of(&allowed, "data == data"), Ok("true".to_owned()));
}

#[test]
fn an_event_is_read_once_for_all_expressions_and_only_when_asked() {
    let order = json_event(ORDER);
    let view = EventView::new(&order);
    assert_eq!(compile("type != ''").is_true(&view), Ok(true));
    let read = |view: &EventView<'_>| std::ptr::from_ref(view.data().unwrap().unwrap()) as usize;
    let first = read(&view);
    assert_eq!(compile("data.count == 3").is_true(&view), Ok(true));
    assert_eq!(read(&view), first);
}

#[test]
fn a_panic_ends_one_evaluation_alone() {
    assert_eq!(unharmed(|| 1), Some(1));
    let quiet: Option<()> = unharmed(|| std::panic::resume_unwind(Box::new("broken")));
    assert_eq!(quiet, None);
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "data",
            "id",
            "time",
            ".",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            ",",
            ":",
            "?",
            "!",
            "-",
            "+",
            "*",
            "/",
            "%",
            "<",
            "<=",
            "==",
            "&&",
            "||",
            " in ",
            "has(",
            ".map(x,",
            ".all(x,",
            ".filter(x,",
            "x",
            "1",
            "1.5",
            "0x",
            "1e",
            "'a'",
            "\"",
            "'",
            "\\",
            "b'",
            "r'",
            "`",
            "//",
            "\n",
            "null",
            "true",
            "size(",
            "string(",
            ".split(",
            "lines",
            "totalNet",
            "ä",
            "🙂",
            "\0",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_panics(pieces in prop::collection::vec(piece(), 0..40)) {
        let text = pieces.concat();
        let order = json_event(ORDER);
        // Without the net under it.
        if let Ok(root) = parser::parse(&text, Scope::Answer) {
            let view = EventView::new(&order);
            if let Ok(value) = Evaluation::new(&view).value(&root) {
                let _written = output::json(&value);
            }
        }
    }

    #[test]
    fn no_data_panics(data in any::<String>(), pieces in prop::collection::vec(piece(), 0..10)) {
        let _read = crate::application::event_view::Json::read(&data);
        let _read = crate::application::event_view::Json::read(&pieces.concat());
    }

    #[test]
    fn whole_numbers_compare_as_they_are(left in any::<i64>(), right in any::<i64>()) {
        let texts = (left.to_string(), format!("{right}.0"));
        prop_assert_eq!(number::compare(&texts.0, &texts.1), left.cmp(&right));
    }
}
