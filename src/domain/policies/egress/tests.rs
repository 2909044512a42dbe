use super::*;

const GLOBAL: [&str; 22] = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.31.196.1",
    "192.52.193.1",
    "192.175.48.1",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2001:1::1",
    "2001:3::1",
    "2001:4:112::1",
    "2001:20::1",
    "2001:30::1",
    "2001:200::1",
    "2620:4f:8000::1",
    "64:ff9b::808:808",
    "::ffff:8.8.8.8",
];

const REFUSED: [(&str, &str); 66] = [
    ("0.0.0.0", "unspecified"),
    ("0.0.0.1", "this network"),
    ("0.255.255.255", "this network"),
    ("10.0.0.0", "private"),
    ("10.255.255.255", "private"),
    ("100.64.0.0", "shared"),
    ("100.127.255.255", "shared"),
    ("100.100.100.200", "metadata"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.255", "loopback"),
    ("168.63.129.16", "metadata"),
    ("169.254.0.1", "link-local"),
    ("169.254.169.254", "metadata"),
    ("172.16.0.0", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.1", "protocol assignments"),
    ("192.0.0.192", "metadata"),
    ("192.0.2.1", "documentation"),
    ("192.88.99.1", "6to4 relay"),
    ("192.168.255.255", "private"),
    ("198.18.0.0", "benchmarking"),
    ("198.19.255.255", "benchmarking"),
    ("198.51.100.1", "documentation"),
    ("203.0.113.1", "documentation"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.1", "reserved"),
    ("255.255.255.254", "reserved"),
    ("255.255.255.255", "broadcast"),
    ("::", "unspecified"),
    ("::1", "loopback"),
    ("::2", "this network"),
    ("::127.0.0.1", "loopback"),
    ("::ffff:127.0.0.1", "loopback"),
    ("::ffff:10.0.0.1", "private"),
    ("::ffff:169.254.169.254", "metadata"),
    ("::ffff:0:127.0.0.1", "loopback"),
    ("64:ff9b::127.0.0.1", "loopback"),
    ("64:ff9b::a9fe:a9fe", "metadata"),
    ("64:ff9b:1::8.8.8.8", "local NAT64"),
    ("64:ff9b:0:1::1", "NAT64"),
    ("100::1", "discard-only"),
    ("100:0:0:1::1", "dummy"),
    ("100:0:0:2::1", "reserved"),
    ("1fff::1", "reserved"),
    ("2001::1", "Teredo"),
    ("2001:0:808:808::1", "Teredo"),
    ("2001:1::4", "protocol assignments"),
    ("2001:2::1", "benchmarking"),
    ("2001:10::1", "ORCHID"),
    ("2001:1ff::1", "protocol assignments"),
    ("2001:db8::1", "documentation"),
    ("2002:808:808::1", "6to4"),
    ("2002:7f00:1::1", "6to4"),
    ("3fff::1", "documentation"),
    ("3fff:fff::1", "documentation"),
    ("4000::1", "reserved"),
    ("5f00::1", "segment routing"),
    ("fc00::1", "private"),
    ("fdff::1", "private"),
    ("fd00:ec2::254", "metadata"),
    ("fd20:ce::254", "metadata"),
    ("fe80::1", "link-local"),
    ("febf::1", "link-local"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn kind(policy: &EgressPolicy, text: &str) -> Option<&'static str> {
    policy.check(ip(text)).err().map(|refused| refused.kind)
}

#[test]
fn only_global_addresses_are_taken_and_the_refusal_names_the_kind() {
    let policy = EgressPolicy::default();
    for address in GLOBAL {
        assert_eq!(kind(&policy, address), None, "{address}");
    }
    for (address, expected) in REFUSED {
        assert_eq!(kind(&policy, address), Some(expected), "{address}");
    }
}

#[test]
fn a_refusal_says_which_address_and_what_would_allow_it() {
    let refused = EgressPolicy::default().check(ip("10.1.2.3")).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the address 10.1.2.3 is not public (private); EGRESS_ALLOW_CIDRS can allow it"
    );
}

#[test]
fn an_allowed_network_allows_its_addresses_in_their_ipv6_forms_too_and_no_others() {
    let nets = [
        "127.0.0.0/8",
        "10.1.0.0/16",
        "fd12::/16",
        "169.254.169.254/32",
    ];
    let policy = EgressPolicy::new(nets.map(|net| net.parse().unwrap()).to_vec());
    for address in [
        "127.0.0.1",
        "::ffff:127.0.0.1",
        "10.1.255.255",
        "::ffff:10.1.0.1",
        "64:ff9b::10.1.0.1",
        "fd12::1",
        "169.254.169.254",
    ] {
        assert_eq!(kind(&policy, address), None, "{address}");
    }
    for (address, expected) in [
        ("::1", "loopback"),
        ("10.2.0.0", "private"),
        ("::ffff:10.2.0.1", "private"),
        ("fd13::1", "private"),
        ("169.254.169.253", "link-local"),
    ] {
        assert_eq!(kind(&policy, address), Some(expected), "{address}");
    }
}

#[test]
fn a_literal_host_is_judged_in_any_notation_and_a_name_is_not() {
    let policy = EgressPolicy::default();
    let check = |url: &str| {
        let url = url::Url::parse(url).unwrap();
        check_literal_host(&policy, &url.host().unwrap()).map_err(|refused| refused.kind)
    };
    for literal in [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://%31%32%37.0.0.1/",
        "http://１２７.0.0.1/",
        "http://127.0.0.1./",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[0:0:0:0:0:ffff:7f00:1]/",
    ] {
        assert_eq!(check(literal), Err("loopback"), "{literal}");
    }
    assert_eq!(check("http://localhost/"), Ok(()));
    assert_eq!(check("https://api.example.com/"), Ok(()));
    assert_eq!(check("https://8.8.8.8/"), Ok(()));
}
