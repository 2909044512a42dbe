use serde_json::json;

use crate::{application::played::PlayedExpressions, domain::policies::RetryPolicy};

use super::*;

fn save(config: &Map<String, Value>) -> Result<WebhookSettings, Faults> {
    let rules = SavingRules {
        egress: &EgressPolicy::default(),
        expressions: &PlayedExpressions,
        replaces: false,
    };
    webhook_settings(config, Some(&rules))
}

fn read(config: Value) -> Result<WebhookSettings, Vec<String>> {
    let Value::Object(config) = config else {
        panic!("not an object")
    };
    let paths = |faults: Faults| faults.into_vec().into_iter().map(|f| f.path).collect();
    save(&config).map_err(paths)
}

fn faults(config: Value) -> Vec<String> {
    read(config).err().unwrap_or_default()
}

#[test]
fn a_url_is_enough_and_the_rest_has_defaults() {
    let settings = read(json!({ "url": "https://example.com/hook" })).unwrap();
    assert_eq!(
        settings,
        WebhookSettings {
            url: "https://example.com/hook".to_owned(),
            method: HttpMethod::Post,
            headers: Vec::new(),
            timeout: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            format: BodyFormat::Standard,
            ordering: None,
            batch: None,
            response: None,
            filter: None,
            transform: None,
            rate_limit: None,
            max_in_flight: None,
        }
    );
}

#[test]
fn settings_are_printed_without_what_may_be_secret() {
    let settings = read(json!({
        "url": "https://example.com/?token=S3CRET", "headers": { "Authorization": "S3CRET" },
    }));
    let printed = format!("{:?}", settings.unwrap());
    assert!(
        printed.contains("Post") && !printed.contains("S3CRET"),
        "{printed}"
    );
}

#[test]
fn everything_that_is_supported_is_read() {
    let settings = read(json!({
        "url": "http://example.com:8080/a?b=c",
        "method": "PUT",
        "headers": { "Content-Type": "application/json", "Authorization": "Bearer token" },
        "timeout": "5s",
        "retryPolicy": { "maxRetries": 3, "backoffMs": 500 },
        "format": "cloudevents-binary",
        "signing": "v1a",
        "ordering": { "key": "data.customerId", "onExhausted": "block" },
    }))
    .unwrap();
    let ordering = Ordering {
        key: "data.customerId".to_owned(),
        on_exhausted: OnExhausted::Block,
    };
    assert_eq!(settings.ordering, Some(ordering));
    assert_eq!(settings.method, HttpMethod::Put);
    let header = |n: &str, v: &str| (n.to_owned(), v.to_owned());
    assert_eq!(
        settings.headers,
        [
            header("content-type", "application/json"),
            header("authorization", "Bearer token")
        ]
    );
    assert_eq!(settings.timeout, Duration::from_secs(5));
    assert_eq!(
        settings.retry,
        RetryPolicy::Exponential {
            max_retries: 3,
            initial: Duration::from_millis(500)
        }
    );
    assert_eq!(settings.format, BodyFormat::CloudEventsBinary);
}

#[test]
fn an_address_must_be_a_plain_http_url() {
    let long = format!("https://example.com/{}", "x".repeat(2048));
    for bad in [
        "",
        "example.com",
        "ftp://example.com",
        "https://",
        "https://user@example.com",
        "https://user:pass@example.com",
        "https://:pass@example.com",
        "https://exa mple.com",
        " https://example.com",
        "https://example.com/\n",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://[::ffff:10.0.0.1]/",
        &long,
    ] {
        assert_eq!(faults(json!({ "url": bad })), ["config.url"], "{bad}");
    }
    for bad in [json!(null), json!(1), json!({})] {
        assert_eq!(faults(json!({ "url": bad })), ["config.url"]);
    }
}

#[test]
fn a_host_can_be_looked_up_and_a_port_connected_to() {
    let label = |length: usize| "a".repeat(length);
    let name = |last: usize| format!("{0}.{0}.{0}.{1}", label(63), label(last));
    for (host, problem) in [
        ("example.com.".to_owned(), None),
        ("example.com:1".to_owned(), None),
        ("b\u{fc}cher.example".to_owned(), None),
        (format!("{}.example", label(63)), None),
        (name(61), None),
        (format!("{}.", name(61)), None),
        (name(62), Some("at most 253")),
        (format!("{}.example", label(64)), Some("at most 63")),
        // Longer in ASCII than it is written.
        (
            format!("{}.example", "\u{fc}".repeat(60)),
            Some("at most 63"),
        ),
        ("a..example".to_owned(), Some("empty parts")),
        (".example".to_owned(), Some("empty parts")),
        ("example..".to_owned(), Some("empty parts")),
        (".".to_owned(), Some("empty parts")),
        ("example.com:0".to_owned(), Some("port 0")),
        ("8.8.8.8:0".to_owned(), Some("port 0")),
    ] {
        let config = json!({ "url": format!("https://{host}/hook") });
        let Value::Object(config) = config else {
            panic!("not an object")
        };
        let saved = save(&config);
        let told: Vec<_> = saved.err().into_iter().flat_map(Faults::into_vec).collect();
        assert_eq!(
            told.len(),
            usize::from(problem.is_some()),
            "{host}: {told:?}"
        );
        for fault in told {
            assert_eq!(fault.path, "config.url");
            assert!(
                fault.message.contains(problem.unwrap()),
                "{host}: {fault:?}"
            );
        }
        // What was saved before is still loaded; its attempts fail.
        assert!(webhook_settings(&config, None).is_ok(), "{host}");
    }
}

#[test]
fn all_faults_are_listed_at_once() {
    let config = json!({
        "method": "post",
        "headers": { "a b": "x", "webhook-id": "x", "Host": "x", "User-Agent": "x", "x": "a\nb", "y": 1, "Z": "1", "z": "2" },
        "timeout": 999,
        "retryPolicy": { "maxRetries": 11, "backoffMs": 99, "extra": 1 },
        "format": "xml",
        "signing": "v2",
        "filter": "true &&",
        "nonsense": 1,
    });
    assert_eq!(
        faults(config),
        [
            "config.url",
            "config.method",
            "config.headers.a b",
            "config.headers.webhook-id",
            "config.headers.Host",
            "config.headers.User-Agent",
            "config.headers.x",
            "config.headers.y",
            "config.headers.z",
            "config.timeout",
            "config.retryPolicy.maxRetries",
            "config.retryPolicy.backoffMs",
            "config.retryPolicy.extra",
            "config.format",
            "config.signing",
            "config.filter",
            "config.nonsense",
        ]
    );
}

#[test]
fn a_header_holds_visible_ascii_and_blanks_in_between() {
    for (value, good) in [
        ("", true),
        ("Bearer token", true),
        ("a \t b", true),
        ("!~", true),
        (" a", false),
        ("a\t", false),
        (" ", false),
        ("a\r\nb", false),
        ("a\nb", false),
        ("a\0", false),
        ("a\u{7f}", false),
        ("a\u{1b}", false),
        ("ä", false),
        ("\u{200b}", false),
        ("名", false),
    ] {
        let config = json!({ "url": "https://example.com", "headers": { "X-A": value } });
        let expected: &[&str] = if good { &[] } else { &["config.headers.X-A"] };
        assert_eq!(faults(config), expected, "{value:?}");
    }
}

#[test]
fn headers_are_bounded() {
    let headers = |count: usize, length: usize| -> Value {
        let value = "x".repeat(length);
        (0..count)
            .map(|n| (format!("h-{n:02}"), json!(value)))
            .collect::<Map<_, _>>()
            .into()
    };
    let url = "https://example.com";
    assert!(read(json!({ "url": url, "headers": headers(50, 300) })).is_ok());
    for bad in [headers(51, 1), headers(50, 400), json!([])] {
        assert_eq!(
            faults(json!({ "url": url, "headers": bad })),
            ["config.headers"]
        );
    }
}

#[test]
fn a_retry_policy_is_exponential_or_a_schedule() {
    let policy = |policy: Value| {
        read(json!({ "url": "https://example.com", "retryPolicy": policy })).map(|s| s.retry)
    };
    let exponential = |max_retries, millis| {
        Ok(RetryPolicy::Exponential {
            max_retries,
            initial: Duration::from_millis(millis),
        })
    };
    assert_eq!(policy(json!({ "maxRetries": 0 })), exponential(0, 1000));
    assert_eq!(policy(json!({ "backoffMs": 100 })), exponential(5, 100));
    let waits = [250, 5000].map(Duration::from_millis).to_vec();
    assert_eq!(
        policy(json!({ "schedule": [250, "5s"] })),
        Ok(RetryPolicy::Schedule(waits))
    );
    let at = |rest: &str| Err(vec![format!("config.retryPolicy{rest}")]);
    for (bad, fault) in [
        (json!({}), at("")),
        (json!([]), at("")),
        (json!({ "maxRetries": 1, "schedule": ["5s"] }), at("")),
        (json!({ "schedule": [] }), at(".schedule")),
        (json!({ "schedule": vec!["5s"; 51] }), at(".schedule")),
        (json!({ "schedule": ["5s", "8d"] }), at(".schedule[1]")),
    ] {
        assert_eq!(policy(bad.clone()), fault, "{bad}");
    }
}

#[test]
fn limits_are_read_within_their_bounds() {
    let limits = |given: Value| {
        let mut config = json!({ "url": "https://example.com" });
        for (name, value) in given.as_object().unwrap() {
            config[name] = value.clone();
        }
        read(config)
    };
    let settings = limits(json!({
        "rateLimit": { "requests": 50, "per": "1s" }, "maxInFlight": 16,
    }))
    .unwrap();
    let rule = RateLimit::new(50, Duration::from_secs(1));
    assert_eq!(settings.rate_limit, Some(rule));
    assert_eq!(settings.max_in_flight, Some(16));
    for (bad, path) in [
        (json!({ "rateLimit": 50 }), "rateLimit"),
        (
            json!({ "rateLimit": { "per": "1s" } }),
            "rateLimit.requests",
        ),
        (json!({ "rateLimit": { "requests": 50 } }), "rateLimit.per"),
        (
            json!({ "rateLimit": { "requests": 0, "per": "1s" } }),
            "rateLimit.requests",
        ),
        (
            json!({ "rateLimit": { "requests": 100_001, "per": "1s" } }),
            "rateLimit.requests",
        ),
        (
            json!({ "rateLimit": { "requests": 1, "per": "99ms" } }),
            "rateLimit.per",
        ),
        (
            json!({ "rateLimit": { "requests": 1, "per": "25h" } }),
            "rateLimit.per",
        ),
        (
            json!({ "rateLimit": { "requests": 1, "per": "1s", "burst": 3 } }),
            "rateLimit.burst",
        ),
        (json!({ "maxInFlight": 0 }), "maxInFlight"),
        (json!({ "maxInFlight": 1_001 }), "maxInFlight"),
        (json!({ "maxInFlight": "2" }), "maxInFlight"),
    ] {
        let paths = limits(bad.clone()).unwrap_err();
        assert_eq!(paths, [format!("config.{path}")], "{bad}");
    }
}

#[test]
fn expressions_are_compiled_when_they_are_saved() {
    let given = json!({
        "url": "https://example.com",
        "filter": "data.totalNet > 1000",
        "transform": "{'id': data.orderId}",
    });
    let settings = read(given).unwrap();
    assert_eq!(settings.filter.as_deref(), Some("data.totalNet > 1000"));
    assert_eq!(settings.transform.as_deref(), Some("{'id': data.orderId}"));
    let bad = json!({ "url": "https://example.com", "filter": "true &&", "transform": 7 });
    let Value::Object(bad) = bad else {
        panic!("not an object")
    };
    let faults = save(&bad).unwrap_err().into_vec();
    let faults: Vec<_> = faults
        .iter()
        .map(|f| (f.path.as_str(), f.message.as_str()))
        .collect();
    assert_eq!(
        faults,
        [
            ("config.filter", "something is missing (line 1, column 8)"),
            (
                "config.transform",
                "must be a string that holds an expression"
            ),
        ]
    );
    let raw = json!({ "url": "https://example.com", "format": "raw", "transform": "data" });
    assert_eq!(tests::faults(raw), ["config.transform"]);
    let raw = json!({ "url": "https://example.com", "format": "raw", "filter": "true" });
    assert!(read(raw).is_ok());
}

#[test]
fn an_expression_that_is_always_of_the_wrong_kind_is_refused() {
    let with = |filter: &str, key: &str| {
        let config = json!({
            "url": "https://example.com", "filter": filter, "ordering": { "key": key },
        });
        let Value::Object(config) = config else {
            panic!("not an object")
        };
        save(&config).map_err(Faults::into_vec)
    };
    let faults = with("1", "[1]").unwrap_err();
    let faults: Vec<_> = { faults.iter() }
        .map(|f| (f.path.as_str(), f.message.as_str()))
        .collect();
    assert_eq!(
        faults,
        [
            (
                "config.filter",
                "must be true or false, but is always a number"
            ),
            (
                "config.ordering.key",
                "must be a text, a number or a boolean, but is always a list"
            ),
        ]
    );
    assert!(with("data.a", "1").is_ok(), "constant keys are allowed");
}

#[test]
fn a_response_names_the_type_of_its_event() {
    let url = "https://example.com";
    let with = |response: Value| json!({ "url": url, "response": response });
    let longest = "x".repeat(127);
    for (response, event, data) in [
        (json!({ "event": "a.b" }), "a.b", None),
        (json!({ "event": longest }), longest.as_str(), None),
        (
            json!({ "event": "a", "data": "response.n" }),
            "a",
            Some("response.n"),
        ),
    ] {
        let read_back = read(with(response)).unwrap().response.unwrap();
        assert_eq!(read_back.event, event);
        assert_eq!(read_back.data.as_deref(), data);
    }
    let long = "x".repeat(128);
    let wide = "ä".repeat(64);
    for event in [
        "", ".", "a.", ".a", "a..b", "a b", "a\tb", "a.*", ">", "*", "a.>", "a*", &long, &wide,
    ] {
        let path = ["config.response.event"];
        assert_eq!(faults(with(json!({ "event": event }))), path, "{event:?}");
    }
    for (response, path) in [
        (json!({}), "config.response.event"),
        (json!({ "data": "true" }), "config.response.event"),
        (json!({ "event": 1 }), "config.response.event"),
        (
            json!({ "event": "a", "data": "true &&" }),
            "config.response.data",
        ),
        (json!({ "event": "a", "data": {} }), "config.response.data"),
        (json!({ "event": "a", "more": 1 }), "config.response.more"),
        (json!("a"), "config.response"),
    ] {
        assert_eq!(faults(with(response.clone())), [path], "{response}");
    }
}

#[test]
fn an_ordering_has_a_key_and_says_what_follows_a_failure() {
    let url = "https://example.com";
    let with = |ordering: Value| json!({ "url": url, "ordering": ordering });
    let read_back = read(with(json!({ "key": "'all'" }))).unwrap().ordering;
    let on_exhausted = read_back.map(|ordering| ordering.on_exhausted);
    assert_eq!(on_exhausted, Some(OnExhausted::Continue));
    for (ordering, path) in [
        (json!({}), "config.ordering.key"),
        (json!({ "key": 1 }), "config.ordering.key"),
        (
            json!({ "key": "id", "onExhausted": "stop" }),
            "config.ordering.onExhausted",
        ),
        (json!({ "key": "id", "more": 1 }), "config.ordering.more"),
        (json!("id"), "config.ordering"),
    ] {
        assert_eq!(faults(with(ordering.clone())), [path], "{ordering}");
    }
}
