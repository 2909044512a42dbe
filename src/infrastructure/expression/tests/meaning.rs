//! What expressions mean, and what is refused.

use super::*;

#[test]
fn conditions_mean_what_a_person_expects() {
    let order = json_event(ORDER);
    let view = EventView::new(&order);
    for text in [
        "data.totalNet > 1000",
        "data.totalNet == 18450",
        "data.totalNet == 18450.0",
        "data.totalNet >= 1.845e4",
        "data.totalNet < 18450.01",
        "data.count == 3 && data.count == 3.0 && data.count != 4",
        "data.huge > 1e47 && data.huge < 1.3e47",
        "data.huge == data.huge && 1e400 > data.huge && .5 < 1.0",
        "data.tax * 100 == 19",
        "0.1 + 0.2 == 0.3",
        "data.amount == '1234.50'",
        "data.amount != 1234.5",
        "double(data.amount) == 1234.5",
        "!data.paid",
        "data.note == null && data.count != null",
        "has(data.note) && !has(data.nothing)",
        "!has(data.nothing) || data.nothing > 3",
        "data.nothing > 3 || true",
        "!(data.nothing > 3 && false)",
        "data.address.country in ['DE', 'AT']",
        "'country' in data.address",
        "data.address['zip-code'] == '26121'",
        "data.address.`zip-code` == '26121'",
        "data.in == 1",
        "data.lines.exists(l, l.quantity > 4)",
        "data.lines.all(l, l.quantity * l.price < 100)",
        "data.lines.exists_one(l, l.sku.startsWith('A'))",
        "data.lines.filter(l, l.quantity > 2).size() == 1",
        "size(data.lines) == 2 && data.lines[1].sku == \"B-2\"",
        "data.lines.map(l, l.sku) == ['A-1', 'B-2']",
        "{'a': 1, 'b': [2]} == {'b': [2.0], 'a': 1}",
        "type.startsWith('sales.') && type.endsWith('created') && type.contains('order')",
        "id == 'e-1' && source == '/erp' && tenantId == 'nord'",
        "subject == 'erp.sales.order.created'",
        "time > timestamp('2026-11-02T00:00:00Z') && time.getFullYear() == 2026",
        "time - duration('1h30m') < time && time.getHours() == 8 && time.getMonth() == 10",
        "(time - timestamp('2026-11-02T08:14:09Z')) < duration('200ms')",
        "metadata.correlationId == 'c-9' && metadata.sequence == 7",
        "!has(metadata.traceparent)",
        "data.count > 2 ? data.paid == false : false",
        "1 < 2 == true",
        "2 + 3 * 4 == 14 && (2 + 3) * 4 == 20 && 7 / 2 == 3 && data.count / 2 == 1.5",
        "-data.count == -3 && - 2 == -2 && 0x10 == 16 && 3u == 3",
        "-9223372036854775808 < 0",
        r"'\u00e4\x41\101' == 'äAA' && r'\n' == '\\n' && '''a'b''' == 'a\'b'",
        "b'ab' == b'\\x61b' // a comment",
        "string(data.totalNet) == '18450.00' && int('7') + int(7.9) == 14 && bool('true')",
        "'a,b'.split(',').join('-') == 'a-b' && ' x '.trim().upperAscii() == 'X'",
        "'aXa'.replace('X', 'b').lowerAscii() == 'aba'",
        "'A' < 'B' && 'ä'.size() == 1",
    ] {
        assert_eq!(compile(text).is_true(&view), Ok(true), "{text}");
    }
}

#[test]
fn totals_in_every_form_compare_as_numbers() {
    let filter = compile("data.totalNet > 1000");
    for (total, expected) in [
        ("1000.5", true),
        ("1001", true),
        ("1e9", true),
        ("18446744073709551616", true),
        ("1000.0000000000000000000000000000000000000000001", true),
        ("1000", false),
        ("1000.00", false),
        ("-1e9", false),
        ("999.9999999999999999", false),
    ] {
        let event = json_event(&format!("{{\"totalNet\":{total}}}"));
        assert_eq!(
            filter.is_true(&EventView::new(&event)),
            Ok(expected),
            "{total}"
        );
    }
    let event = json_event(r#"{"totalNet":"1234.50"}"#);
    assert_eq!(
        filter.is_true(&EventView::new(&event)).unwrap_err(),
        "a text cannot be compared with a number (line 1, column 15)"
    );
}

#[test]
fn what_cannot_be_evaluated_says_why_and_where() {
    let order = json_event(ORDER);
    let view = EventView::new(&order);
    for (text, expected) in [
        (
            "data.total > 1",
            "there is no field \"total\" (line 1, column 6)",
        ),
        (
            "true &&\n data.a.b == 1",
            "there is no field \"a\" (line 2, column 7)",
        ),
        (
            "data.count.x == 1",
            "there is no field \"x\" in a number (line 1, column 12)",
        ),
        (
            "data.count",
            "must be true or false, but is a number (line 1, column 1)",
        ),
        (
            "data.lines[2] == 1",
            "there is no such entry in a list of 2 (line 1, column 11)",
        ),
        (
            "data.lines[0.5] == 1",
            "there is no such entry in a list of 2 (line 1, column 11)",
        ),
        (
            "data.paid + 1 == 2",
            "a boolean + a number cannot be calculated (line 1, column 11)",
        ),
        (
            "data.count / 0 == 1",
            "a division by zero (line 1, column 12)",
        ),
        ("1 % 0 == 1", "a division by zero (line 1, column 3)"),
        (
            "9223372036854775807 + 1 > 0",
            "a number with too many digits, or a time out of range (line 1, column 21)",
        ),
        (
            "data.huge * 2 > 0",
            "a number with too many digits, or a time out of range (line 1, column 11)",
        ),
        (
            "!data.count",
            "must be true or false, but is a number (line 1, column 7)",
        ),
        (
            "data.count.exists(x, x)",
            "a list or a map is needed, not a number (line 1, column 6)",
        ),
        (
            "int(data.note) == 1",
            "int cannot be applied to null (line 1, column 1)",
        ),
        (
            "timestamp('soon') == time",
            "timestamp cannot be applied to a text (line 1, column 1)",
        ),
        (
            "{1: 2} == {}",
            "the key of a map must be a text, not a number (line 1, column 2)",
        ),
    ] {
        let evaluated = compile(text).is_true(&view);
        assert_eq!(evaluated, Err(expected.to_owned()), "{text}");
    }
}

#[test]
fn transforms_keep_what_they_pass_through_as_it_was_written() {
    let passed =
        |text: &str, expected: &str| assert_eq!(made(text), Ok(expected.to_owned()), "{text}");
    passed("data", ORDER);
    passed("data.totalNet", "18450.00");
    passed("data.address", r#"{"country":"DE","zip-code":"26121"}"#);
    passed(
        "{'id': data.orderId, 'net': data.totalNet, 'huge': [data.huge], 'at': time}",
        r#"{"id":"SO-2026-1042","net":18450.00,"huge":[123456789012345678901234567890123456789012345678.5],"at":"2026-11-02T08:14:09.120Z"}"#,
    );
    passed(
        "data.lines.map(l, {'sku': l.sku, 'sum': l.quantity * l.price})",
        r#"[{"sku":"A-1","sum":20.2},{"sku":"B-2","sum":1}]"#,
    );
    passed("data.lines.map(l, l.quantity > 2, l.price)", "[0.20]");
    passed("data.address.map(k, k)", r#"["country","zip-code"]"#);
    passed("data.totalNet * 1.19", "21955.5");
    passed("data.text", r#""a\"bä\n""#);
    passed(
        "[null, true, 1.50, duration('90s'), b'ab']",
        r#"[null,true,1.5,"90s","YWI="]"#,
    );
    passed("['a' + 'b', [1] + [2]]", r#"["ab",[1,2]]"#);
    passed("{}", "{}");
}

#[test]
fn ordering_keys_are_texts_numbers_and_booleans_as_written() {
    let order = json_event(ORDER);
    let view = EventView::new(&order);
    for (text, key) in [
        ("data.customerId", "K-10027"),
        ("data.totalNet", "18450.00"),
        ("data.count", "3"),
        ("data.paid", "false"),
        ("'always'", "always"),
    ] {
        assert_eq!(compile(text).text(&view), Ok(key.to_owned()), "{text}");
    }
    let no_key = "must be a text, a number or a boolean, but is";
    for text in ["data.note", "data.lines", "data", "time"] {
        let fault = compile(text).text(&view).unwrap_err();
        assert!(fault.starts_with(no_key), "{fault}");
    }
    let long = format!("'{}'", "a".repeat(MAX_TEXT + 1));
    assert!(
        compile(&long)
            .text(&view)
            .unwrap_err()
            .contains("at most 1024 bytes")
    );
}

#[test]
fn data_that_is_no_json_is_bytes() {
    let binary = event(Payload::Binary(Bytes::from_static(&[0, 1, 255])));
    assert_eq!(made_of(&binary, "data.size()"), Ok("3".to_owned()));
    assert_eq!(
        made_of(&binary, "{'file': data}"),
        Ok(r#"{"file":"AAH/"}"#.to_owned())
    );
    assert_eq!(
        made_of(&binary, "data.total").unwrap_err(),
        "there is no field \"total\" in bytes (line 1, column 6)"
    );
}

#[test]
fn a_response_is_there_where_it_is_given() {
    let text = "{'number': response.documentNumber, 'for': data.orderId}";
    let fault = Cel.compile(text, Scope::Event).unwrap_err();
    assert_eq!(fault.position, Some((1, 12)));
    let expression = Cel.compile(text, Scope::Answer).unwrap();
    let order = json_event(ORDER);
    let view = EventView::with_response(&order, r#"{"documentNumber":"4711.00"}"#);
    let made = expression.json(&view).unwrap();
    assert_eq!(&made[..], br#"{"number":"4711.00","for":"SO-2026-1042"}"#);
    let without = expression.json(&EventView::new(&order)).unwrap_err();
    assert_eq!(without, "there is no response (line 1, column 12)");
    let broken = EventView::with_response(&order, "oops");
    assert!(
        expression
            .json(&broken)
            .unwrap_err()
            .contains("response cannot be read")
    );
}

#[test]
fn what_is_no_expression_is_refused_with_its_position() {
    for (text, expected) in [
        ("", "expected a value, found the end (line 1, column 1)"),
        (
            "data.totalNet > ",
            "expected a value, found the end (line 1, column 17)",
        ),
        (
            "data.x > 1 &&\n  )",
            "expected a value, found \")\" (line 2, column 3)",
        ),
        (
            "a b",
            "there is no variable \"a\"; there are: id, type, source, subject, time, tenantId, data, metadata (line 1, column 1)",
        ),
        (
            "id id",
            "expected an operator or the end, found the name \"id\" (line 1, column 4)",
        ),
        (
            "data.",
            "expected the name of a field, found the end (line 1, column 6)",
        ),
        ("'abc", "a text has no end (line 1, column 1)"),
        ("'a\nb'", "a text has no end on its line (line 1, column 1)"),
        (r"'\q'", "an escape that means nothing (line 1, column 2)"),
        (r"'\xZZ'", "an escape without its digits (line 1, column 2)"),
        (
            r"'\ud800'",
            "an escape that is no character (line 1, column 2)",
        ),
        (
            "ä == 1",
            "a character that means nothing here (line 1, column 1)",
        ),
        (
            "'ä' == 1a",
            "a number that cannot be read, or has too many digits (line 1, column 8)",
        ),
        (
            "9223372036854775808",
            "a number that cannot be read, or has too many digits (line 1, column 1)",
        ),
    ] {
        assert_eq!(fault(text), expected, "{text}");
    }
}

#[test]
fn unknown_names_and_wrong_calls_are_refused_with_their_position() {
    for (text, expected) in [
        (
            "explode(data)",
            "there is no function \"explode\" that is called so (line 1, column 1)",
        ),
        (
            "data.matches('a')",
            "there is no function \"matches\" that is called so (line 1, column 6)",
        ),
        (
            "size(data, data)",
            "size takes 1 arguments, not 2 (line 1, column 1)",
        ),
        (
            "has(data)",
            "has(…) asks for a field: has(data.field) (line 1, column 1)",
        ),
        (
            "data.all(1, true)",
            "expected the name of a variable, found a number (line 1, column 10)",
        ),
        (
            "data.map(x, x) == x",
            "there is no variable \"x\"; there are: id, type, source, subject, time, tenantId, data, metadata (line 1, column 19)",
        ),
        ("[1, 2", "expected \"]\", found the end (line 1, column 6)"),
        (
            "{'a' 1}",
            "expected \":\", found a number (line 1, column 6)",
        ),
        (
            "data.a = 1",
            "a character that means nothing here (line 1, column 8)",
        ),
    ] {
        assert_eq!(fault(text), expected, "{text}");
    }
}
