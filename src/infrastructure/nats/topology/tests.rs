use super::*;

fn topology(prefix: &str) -> Topology {
    Topology::new(&TopologySettings {
        prefix: SubjectPrefix::try_new(prefix).unwrap(),
        erp_stream: "ERP_EVENTS".to_owned(),
        erp_subjects: vec!["erp.>".to_owned(), "sales.>".to_owned()],
        erp_ack_wait: TopologySettings::ERP_ACK_WAIT,
        erp_max_ack_pending: TopologySettings::ERP_MAX_ACK_PENDING,
    })
}

/// A change here is a change of the contract, or of what an operator sees.
#[test]
fn the_topology_is_what_it_was() {
    for (prefix, expected) in [
        ("integration", include_str!("integration.json")),
        (
            "site-1.integration",
            include_str!("site-1.integration.json"),
        ),
    ] {
        let actual = serde_json::to_string_pretty(&topology(prefix)).unwrap();
        assert_eq!(actual.trim(), expected.trim(), "{prefix}:\n{actual}");
    }
}

#[test]
fn no_duplicate_window_is_longer_than_its_stream_keeps_messages() {
    for stream in topology("integration").streams() {
        assert!(stream.duplicate_window <= stream.max_age, "{}", stream.name);
    }
}
