use super::*;

fn new(name: &str, subnet: Option<&str>) -> NewNetwork {
    NewNetwork {
        name: name.to_owned(),
        subnet: subnet.map(|text| text.parse().unwrap()),
        ..NewNetwork::default()
    }
}

fn open() -> (tempfile::TempDir, Networks) {
    let dir = tempfile::tempdir().unwrap();
    let networks = Networks::open(dir.path()).unwrap();
    (dir, networks)
}

#[test]
fn a_network_gets_the_first_subnet_that_overlaps_with_nothing() {
    let (_dir, networks) = open();
    let locked = networks.lock().unwrap();
    let routes = Taken { four: vec!["10.90.0.0/16".parse().unwrap()], six: Vec::new() };
    let one = networks.create(&locked, new("one", None), &routes).unwrap();
    let two = networks.create(&locked, new("two", None), &routes).unwrap();
    assert_eq!(
        [one.info().subnet, two.info().subnet].map(|s| s.to_string()),
        ["10.91.0.0/24", "10.91.1.0/24"]
    );
    assert_eq!(two.info().gateway, Ipv4Addr::new(10, 91, 1, 1));
    assert_ne!(one.info().bridge(), two.info().bridge());
    assert_eq!(one.info().bridge().len(), 15);
    for (subnet, with) in
        [("10.91.0.0/25", "network one"), ("10.0.0.0/8", "network"), ("10.90.7.0/24", "route")]
    {
        let refused = networks.create(&locked, new("three", Some(subnet)), &routes).unwrap_err().to_string();
        assert!(refused.contains("overlaps") && refused.contains(with), "{refused}");
    }
    for name in ["one", "host", "none", "../x", ""] {
        assert!(networks.create(&locked, new(name, None), &routes).is_err(), "{name}");
    }
    assert_eq!(networks.find(&one.info().id[..20]).unwrap(), one);
    assert_eq!(networks.list().unwrap(), [one, two]);
}

#[test]
fn what_is_no_subnet_is_refused() {
    for text in
        ["10.0.0.0", "10.0.0.1/24", "10.0.0.0/31", "10.0.0.0/33", "0.0.0.0/8", "127.0.0.0/24", "fd00::/64"]
    {
        assert!(text.parse::<Subnet>().is_err(), "{text}");
    }
    let least: Subnet = "192.168.7.4/30".parse().unwrap();
    let hosts: Vec<_> = least.all().filter(|address| least.is_host(*address)).collect();
    assert_eq!(hosts, [5, 6].map(|last| Ipv4Addr::new(192, 168, 7, last)));
    // Routes may be for all there is or for one host.
    assert!(Subnet::around(Ipv4Addr::UNSPECIFIED, 0).overlaps(least));
    assert!(Subnet::around(Ipv4Addr::new(192, 168, 7, 7), 32).overlaps(least));
    assert!(!Subnet::around(Ipv4Addr::new(192, 168, 7, 8), 32).overlaps(least));
}

#[test]
fn addresses_come_from_the_range_and_reserved_ones_are_nobodys() {
    let (_dir, networks) = open();
    let locked = networks.lock().unwrap();
    let pool = |range: &str, reserved: &str| Pool {
        range: Some(range.parse().unwrap()),
        range6: None,
        reserved: [("router".to_owned(), reserved.parse().unwrap())].into(),
    };
    let wanted = |pool| NewNetwork { pool, ..new("range", Some("10.9.0.0/24")) };
    for (range, reserved) in
        [("10.9.1.0/28", "10.9.0.5"), ("10.9.0.0/16", "10.9.0.5"), ("10.9.0.0/28", "10.8.0.5")]
    {
        let refused = networks.create(&locked, wanted(pool(range, reserved)), &Taken::default());
        assert!(refused.unwrap_err().to_string().contains("is not in 10.9.0.0/24"), "{range} {reserved}");
    }
    let pool = pool("10.9.0.252/30", "10.9.0.253");
    let network = networks.create(&locked, wanted(pool), &Taken::default()).unwrap();
    assert_eq!(networks.find("range").unwrap(), network);
    let lease = |address: Option<&str>| {
        let address = address.map(|text| text.parse().unwrap());
        networks.lease(&locked, &network, named(address, "x"))
    };
    // The last address of the network is no host's.
    let taken = [lease(None).unwrap(), lease(None).unwrap()];
    assert_eq!(taken.map(|lease| lease.info.address.octets()[3]), [252, 254]);
    assert!(lease(Some("10.9.0.253")).unwrap_err().to_string().contains("taken"));
    let asked = lease(Some("10.9.0.7")).unwrap();
    assert_eq!(asked.info.address, Ipv4Addr::new(10, 9, 0, 7));
}

fn named(address: Option<Ipv4Addr>, name: &str) -> NewLease {
    NewLease { workload: name.to_owned(), names: vec![name.to_owned()], address, ..NewLease::default() }
}

/// Who is on it, as the server of names reads it.
fn connected(network: &Network) -> Vec<LeaseInfo> {
    files::read(&network.path.join(CONNECTED)).unwrap()
}

#[test]
fn a_workload_with_another_name_is_called_so_on_all_its_networks() {
    let (_dir, networks) = open();
    let locked = networks.lock().unwrap();
    let all = ["a", "b"].map(|name| networks.create(&locked, new(name, None), &Taken::default()).unwrap());
    let id = "0".repeat(64);
    let long = "a-name-that-is-longer".to_owned();
    let wanted = |network: &Network| NewLease {
        id: id.clone(),
        names: vec!["alias".to_owned(), long.clone()],
        workload: format!("{long}{}", network.info().name),
        ..NewLease::default()
    };
    let _leases = all.each_ref().map(|network| networks.lease(&locked, network, wanted(network)).unwrap());
    let other = networks.lease(&locked, &all[0], named(None, &long)).unwrap();
    drop(locked);
    networks.rename(&id, &long, "new").unwrap();
    for network in &all {
        let lease = &connected(network)[0];
        assert_eq!(
            (&*lease.workload, &lease.names[..]),
            ("new", &["alias".to_owned(), "new".to_owned()][..])
        );
        let locked = networks.lock().unwrap();
        assert_eq!(network.leases(&locked).unwrap(), connected(network), "and it is so for good");
    }
    assert_eq!(connected(&all[0])[1], other.info, "another's name is its own");
}

#[test]
fn a_network_with_ipv6_gives_both_addresses_and_each_to_one() {
    let (_dir, networks) = open();
    let locked = networks.lock().unwrap();
    let wanted = NewNetwork { ipv6: true, ..new("six", Some("10.9.0.0/24")) };
    let own = networks.create(&locked, wanted, &Taken::default()).unwrap();
    let (subnet, gateway) = own.info().six.unwrap();
    assert_eq!((subnet.prefix(), gateway), (64, subnet.first()));
    let six = |text: &str| NewNetwork { subnet6: Some(text.parse().unwrap()), ..new("other", None) };
    let overlapping = networks.create(&locked, six(&subnet.to_string()), &Taken::default()).unwrap_err();
    assert!(overlapping.to_string().contains("of network six"), "{overlapping}");
    let routed = Taken { four: Vec::new(), six: vec!["fd00:1::/48".parse().unwrap()] };
    assert!(networks.create(&locked, six("fd00:1::/64"), &routed).unwrap_err().to_string().contains("route"));
    let small = NewNetwork { mtu: Some(1000), ..six("fd00:1::/64") };
    assert!(networks.create(&locked, small, &Taken::default()).unwrap_err().to_string().contains("1280"));

    let taken = NewLease { address6: Some(subnet.at(3)), ..named(None, "first") };
    let first = networks.lease(&locked, &own, taken.clone()).unwrap();
    assert_eq!(first.info.address6, Some(subnet.at(3)));
    assert!(networks.lease(&locked, &own, taken).unwrap_err().to_string().contains("taken"));
    let second = networks.lease(&locked, &own, named(None, "second")).unwrap();
    assert_eq!(second.info.address, Ipv4Addr::new(10, 9, 0, 3));
    assert_eq!(second.info.address6, Some(subnet.at(4)), "the one that goes with it is another's");
    assert_ne!(first.info.mac, second.info.mac);
    assert_eq!(connected(&own)[1], second.info);
    let four = networks.create(&locked, new("four", None), &Taken::default()).unwrap();
    let wanted = NewLease { address6: Some(gateway), ..named(None, "x") };
    assert!(networks.lease(&locked, &four, wanted).unwrap_err().to_string().contains("no IPv6"));
}

#[test]
fn an_address_is_one_workloads_until_it_is_given_back() {
    let (_dir, networks) = open();
    let locked = networks.lock().unwrap();
    let network = networks.create(&locked, new("small", Some("10.9.0.0/29")), &Taken::default()).unwrap();
    let lease = |address, name: &str| networks.lease(&locked, &network, named(address, name));
    let first = lease(None, "first").unwrap();
    assert_eq!(first.info.address, Ipv4Addr::new(10, 9, 0, 2));
    let fourth = lease(Some(Ipv4Addr::new(10, 9, 0, 4)), "fourth").unwrap();
    for (taken, why) in
        [([10, 9, 0, 4], "taken"), ([10, 9, 0, 1], "taken"), ([10, 9, 0, 7], "no address of"), ([1; 4], "no")]
    {
        let refused = lease(Some(taken.into()), "other").unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    assert_eq!(connected(&network), [first.info.clone(), fourth.info.clone()]);
    let more: Vec<_> = (0..3).map(|_| lease(None, "more").unwrap()).collect();
    assert!(lease(None, "late").unwrap_err().to_string().contains("no free address"));
    assert!(networks.remove(&locked, &network).unwrap_err().to_string().contains("in use by first"));
    assert_eq!(network.leases(&locked).unwrap().len(), 5);
    drop(locked);
    drop((first, more));
    let locked = networks.lock().unwrap();
    assert_eq!(network.settle(&locked).unwrap(), std::slice::from_ref(&fourth.info));
    assert_eq!(connected(&network), std::slice::from_ref(&fourth.info));
}

#[test]
fn an_address_of_a_process_that_was_killed_is_free() {
    let (_dir, networks) = open();
    let locked = networks.lock().unwrap();
    let network = networks.create(&locked, new("n", None), &Taken::default()).unwrap();
    // What is left is a file that nobody has locked.
    std::fs::write(
        network.path.join("leases").join(network.info().subnet.to_string().replace("0/24", "2")),
        "{",
    )
    .unwrap();
    assert_eq!(network.leases(&locked).unwrap(), []);
    networks.remove(&locked, &network).unwrap();
    assert!(networks.find("n").unwrap_err().is_not_found());
}
