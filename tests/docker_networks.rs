//! Networks through the Docker Engine API: the stock client, and codes that its libraries look for.

use serde_json::{Value, json};

use crate::docker::{Server, refused};

/// Networks of one test, named and addressed as no other's, and gone when it is.
struct Nets<'a> {
    server: &'a Server,
    names: Vec<String>,
}

impl<'a> Nets<'a> {
    fn new(server: &'a Server) -> Nets<'a> {
        Nets { server, names: Vec::new() }
    }

    /// Makes one, and gives its name and id.
    fn create(&mut self, purpose: &str, flags: &[&str]) -> (String, String) {
        let name = format!("{purpose}-{}", std::process::id());
        let id = self.server.docker(&[&["network", "create"], flags, &[&name]].concat()).trim().to_owned();
        self.names.push(name.clone());
        (name, id)
    }
}

impl Drop for Nets<'_> {
    fn drop(&mut self) {
        let left = self.server.try_to(&["ps", "-aq"]).stdout;
        for id in left.split_whitespace() {
            self.server.try_to(&["rm", "-f", id]);
        }
        for name in &self.names {
            self.server.try_to(&["network", "rm", name]);
        }
    }
}

/// Subnets that no other test of this program asks for, nor one that runs beside it with another process' number.
fn subnets(of: u8) -> (String, String) {
    let [.., a, b] = std::process::id().to_be_bytes();
    let four = format!("172.{}.{b}.0/24", 16 + (a ^ of) % 16);
    (four, format!("fd{of:02x}:{a:x}:{b:x}::/64"))
}

fn inspect(server: &Server, kind: &str, name: &str) -> Value {
    let text = server.docker(&[kind, "inspect", name]);
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

#[test]
fn the_stock_client_makes_networks_and_looks_at_them_and_removes_them() {
    let Some(server) = Server::with_client() else { return };
    let mut nets = Nets::new(&server);
    let (four, six) = subnets(1);
    let gateway = four.replace(".0/24", ".77");
    let flags = [
        "--subnet",
        &four,
        "--gateway",
        &gateway,
        "--ipv6",
        "--subnet",
        &six,
        "--label",
        "team=a",
        "--opt",
        "com.docker.network.driver.mtu=1400",
    ];
    let (name, id) = nets.create("made", &flags);
    let said = inspect(&server, "network", &name);
    assert_eq!((said["Id"].as_str(), said["Driver"].as_str()), (Some(&*id), Some("bridge")));
    let config = json!([{"Subnet": four, "Gateway": gateway}, {"Subnet": six, "Gateway": six.replace("::/64", "::1")}]);
    assert_eq!((&said["IPAM"]["Config"], &said["EnableIPv6"]), (&config, &json!(true)));
    assert_eq!(said["Options"], json!({"com.docker.network.driver.mtu": "1400"}));
    assert_eq!((&said["Labels"], &said["Containers"]), (&json!({"team": "a"}), &json!({})));
    // One set of calls underneath: what one face makes, the other sees.
    assert!(server.place.strata(&["network", "ls"]).contains(&name));
    let (inner, _) = nets.create("inner", &["--internal"]);
    assert_eq!(inspect(&server, "network", &inner)["Internal"], true);

    let list = |filter: &str| server.docker(&["network", "ls", "--format", "{{.Name}}", "--filter", filter]);
    assert_eq!(list("label=team=a"), format!("{name}\n"));
    assert_eq!(list(&format!("id={}", &id[..20])), format!("{name}\n"));
    assert_eq!(list("type=custom"), format!("{inner}\n{name}\n"));
    assert_eq!(list("type=builtin"), "bridge\nhost\nnone\nuser\n");
    assert_eq!(list("driver=bridge"), format!("{inner}\n{name}\n"));

    let create = |arguments: &[&str]| server.try_to(&[&["network", "create"], arguments].concat());
    refused(&create(&[&name]), 1, "already exists");
    refused(&create(&["--subnet", &four, "other"]), 1, "Pool overlaps with other one on this address space");
    refused(&create(&["host"]), 1, "operation is not permitted on predefined host network");
    refused(&create(&["-d", "overlay", "other"]), 1, "plugin");
    refused(&server.try_to(&["network", "rm", "bridge"]), 1, "pre-defined network and cannot be removed");
    refused(&server.try_to(&["network", "inspect", "nothing"]), 1, "network nothing not found");
    assert_eq!(server.docker(&["network", "rm", &id[..16]]), format!("{}\n", &id[..16]));
    refused(&server.try_to(&["network", "rm", &name]), 1, "not found");
    assert!(!server.place.strata(&["network", "ls"]).contains(&name));
}

/// The addresses that a container finds for a name, in order.
fn found(server: &Server, asker: &str, name: &str) -> Vec<String> {
    let said = server.docker(&["exec", asker, "getent", "ahostsv4", name]);
    let mut all: Vec<_> = said.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn containers_and_machines_on_a_network_find_each_other_by_name() {
    let Some(server) = Server::with_client() else { return };
    let mut nets = Nets::new(&server);
    let (four, six) = subnets(2);
    let (name, id) = nets.create("team", &["--subnet", &four, "--subnet", &six, "--ipv6"]);
    let address = |last: u8| four.replace(".0/24", &format!(".{last}"));
    let six_address = six.replace("::/64", "::99");
    let run = |own: &str, flags: &[&str]| {
        let run = ["run", "-d", "--name", own, "--network", &name];
        server.docker(&[&run[..], flags, &["debian", "sleep", "100000"]].concat()).trim().to_owned()
    };
    let flags = [
        "--ip",
        &address(9),
        "--ip6",
        &six_address,
        "--network-alias",
        "www",
        "--mac-address",
        "02:42:ac:11:00:07",
    ];
    let web = run("web", &flags);
    run("db", &[]);
    let vm = run("vm", &["--runtime", "strata-vm", "--network-alias", "www", "--ip", &address(11)]);

    let found = |asker: &str, name: &str| found(&server, asker, name);
    for (asker, other, last) in [("db", "web", 9), ("vm", "web", 9), ("web", "vm", 11), ("db", "vm", 11)] {
        assert_eq!(found(asker, other), [address(last)], "{asker} looks for {other}");
    }
    let mut both = [address(9), address(11)];
    both.sort();
    assert_eq!(found("db", "www"), both);
    assert_eq!(found("vm", &web[..12]), [address(9)]);

    let said = inspect(&server, "container", "web");
    let own = &said["NetworkSettings"]["Networks"][&name];
    for (key, expected) in [
        ("NetworkID", json!(id)),
        ("IPAddress", json!(address(9))),
        ("IPPrefixLen", json!(24)),
        ("Gateway", json!(address(1))),
        ("MacAddress", json!("02:42:ac:11:00:07")),
        ("GlobalIPv6Address", json!(six_address)),
        ("GlobalIPv6PrefixLen", json!(64)),
        ("Aliases", json!(["www"])),
        ("IPAMConfig", json!({"IPv4Address": address(9), "IPv6Address": six_address})),
    ] {
        assert_eq!(own[key], expected, "{key}: {own}");
    }
    assert_eq!(said["NetworkSettings"]["IPAddress"], address(9));
    assert_eq!(said["HostConfig"]["NetworkMode"], name);
    let mac = server.docker(&["exec", "web", "cat", "/sys/class/net/eth0/address"]);
    assert_eq!(mac, "02:42:ac:11:00:07\n");
    let members = inspect(&server, "network", &name)["Containers"].clone();
    assert_eq!(members.as_object().unwrap().len(), 3);
    assert_eq!(
        (&members[&vm]["Name"], &members[&vm]["IPv4Address"]),
        (&json!("vm"), &json!(address(11) + "/24"))
    );
    let listed =
        server.docker(&["ps", "--filter", &format!("network={id}"), "--format", "{{.Names}} {{.Networks}}"]);
    assert_eq!(listed, format!("vm {name}\ndb {name}\nweb {name}\n"));
    refused(&server.try_to(&["network", "rm", &name]), 1, "has active endpoints");

    server.docker(&["stop", "-t", "0", "web"]);
    assert_eq!(inspect(&server, "container", "web")["NetworkSettings"]["Networks"][&name]["IPAddress"], "");
    assert_eq!(found("db", "www"), [address(11)]);
    server.docker(&["start", "web"]);
    assert_eq!(found("vm", "web"), [address(9)]);
}

#[test]
fn a_container_that_runs_is_connected_and_disconnected_and_unused_networks_are_pruned() {
    let Some(server) = Server::with_client() else { return };
    let mut nets = Nets::new(&server);
    let (first, _) = nets.create("first", &[]);
    let (second, second_id) = nets.create("second", &["--label", "keep"]);
    server.docker(&["run", "-d", "--name", "one", "--network", &first, "debian", "sleep", "100000"]);
    server.docker(&["run", "-d", "--name", "two", "debian", "sleep", "100000"]);
    server.docker(&["network", "connect", "--alias", "partner", &second_id, "one"]);
    server.docker(&["network", "connect", &second, "two"]);
    let found = |name: &str| server.try_to(&["exec", "two", "getent", "ahostsv4", name]);
    let one = inspect(&server, "container", "one")["NetworkSettings"]["Networks"].clone();
    let address = one[&second]["IPAddress"].as_str().unwrap();
    for name in ["one", "partner"] {
        let found = found(name);
        assert!(found.code() == 0 && found.stdout.starts_with(&format!("{address} ")), "{name}: {found:?}");
    }
    assert_eq!(one.as_object().unwrap().len(), 2);
    let two = inspect(&server, "container", "two")["NetworkSettings"]["Networks"].clone();
    assert_eq!(two.as_object().unwrap().keys().collect::<Vec<_>>(), ["bridge", &second]);
    let again = server.try_to(&["network", "connect", &second, "one"]);
    refused(&again, 1, "already exists in network");
    server.docker(&["network", "disconnect", &second, "one"]);
    assert_eq!(found("one").code(), 2);
    refused(&server.try_to(&["network", "disconnect", &second, "one"]), 1, "is not connected to the network");

    let status = |method: &str, path: &str, body: &str| server.ask(method, path, body).0;
    assert_eq!(status("POST", "/networks/create", r#"{"Name":"bridge"}"#), 403);
    assert_eq!(status("POST", "/networks/create", &json!({ "Name": first }).to_string()), 409);
    assert_eq!(status("POST", "/networks/create", "{"), 400);
    assert_eq!(status("POST", "/networks/nothing/connect", r#"{"Container":"one"}"#), 404);
    assert_eq!(status("POST", &format!("/networks/{first}/connect"), r#"{"Container":"none"}"#), 404);
    assert_eq!(status("POST", &format!("/networks/{first}/connect"), r#"{"Container":"one"}"#), 403);
    assert_eq!(status("DELETE", &format!("/networks/{first}"), ""), 403);
    assert_eq!(status("DELETE", "/networks/nothing", ""), 404);
    let body = json!({"Image": "debian", "HostConfig": {"NetworkMode": "nothing"}}).to_string();
    // Not 404, for which docker's client would bring the image.
    assert_eq!(status("POST", "/containers/create", &body), 400);
    let body = json!({"Image": "debian", "HostConfig": {"NetworkMode": first, "Runtime": "strata-vm"},
        "NetworkingConfig": {"EndpointsConfig": {&first: {}, &second: {}}}});
    server.docker(&["rm", "-f", "two"]);
    let (status, said) = server.ask("POST", "/containers/create", &body.to_string());
    assert!(status == 400 && said.contains("one card"), "{status} {said}");

    assert_eq!(server.docker(&["network", "prune", "-f", "--filter", "label!=keep"]), "");
    let pruned = server.docker(&["network", "prune", "-f"]);
    assert!(pruned.contains(&second) && !pruned.contains(&first), "{pruned}");
    assert_eq!(server.docker(&["network", "ls", "-q", "--filter", "type=custom"]).lines().count(), 1);
}

#[test]
fn addresses_are_given_of_the_range_and_reserved_ones_to_nobody() {
    let Some(server) = Server::with_client() else { return };
    let mut nets = Nets::new(&server);
    let (four, _) = subnets(3);
    let address = |last: u8| four.replace(".0/24", &format!(".{last}"));
    let range = four.replace(".0/24", ".64/30");
    let aux = format!("router={}", address(64));
    let flags = ["--subnet", &four, "--ip-range", &range, "--aux-address", &aux];
    let (name, _) = nets.create("range", &flags);
    let config = &inspect(&server, "network", &name)["IPAM"]["Config"][0];
    assert_eq!(config["IPRange"], json!(range));
    assert_eq!(config["AuxiliaryAddresses"], json!({"router": address(64)}));
    let own = |flags: &[&str]| {
        let run = ["run", "--rm", "--network", &name];
        server.try_to(&[&run[..], flags, &["debian", "hostname", "-I"]].concat())
    };
    assert_eq!(own(&[]).stdout.trim(), address(65));
    assert_eq!(own(&["--ip", &address(7)]).stdout.trim(), address(7));
    refused(&own(&["--ip", &address(64)]), 125, "taken");
    let body =
        json!({"Name": "other", "IPAM": {"Config": [{"Subnet": "10.1.0.0/24", "IPRange": "10.2.0.0/28"}]}});
    let (status, said) = server.ask("POST", "/networks/create", &body.to_string());
    assert!(status == 409 && said.contains("is not in"), "{status} {said}");
}

#[test]
fn a_container_shares_the_network_of_another_or_of_the_host_and_a_machine_does_not() {
    let Some(server) = Server::with_client() else { return };
    let mut nets = Nets::new(&server);
    let (name, _) = nets.create("joined", &[]);
    let serve = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 80, Listen => 1); \
                 while (my $c = $s->accept) { print $c qq{from inside\n}; close $c }";
    let id =
        server.docker(&["run", "-d", "--name", "web", "--network", &name, "debian", "perl", "-e", serve]);
    let id = id.trim();
    let with = "container:web";
    let ask = "until exec 3<>/dev/tcp/127.0.0.1/80; do sleep 0.1; done 2>/dev/null; cat <&3";
    assert_eq!(
        server.docker(&["run", "--rm", "--network", with, "debian", "bash", "-c", ask]),
        "from inside\n"
    );
    let files = ["cat", "/etc/resolv.conf", "/etc/hosts", "/sys/class/net/eth0/address"];
    let own = server.docker(&[&["exec", "web"][..], &files].concat());
    assert_eq!(server.docker(&[&["run", "--rm", "--network", with, "debian"][..], &files].concat()), own);
    server.docker(&["run", "-d", "--name", "side", "--network", with, "debian", "sleep", "100000"]);
    let said = inspect(&server, "container", "side");
    assert_eq!(said["HostConfig"]["NetworkMode"], format!("container:{id}"));
    assert_eq!(said["NetworkSettings"]["Networks"], json!({}));
    let connected = server.try_to(&["network", "connect", &name, "side"]);
    refused(&connected, 1, "sharing network namespace");

    let run = |flags: &[&str]| server.try_to(&[&["run", "--rm"], flags, &["debian", "true"]].concat());
    refused(&run(&["--network", "container:none"]), 125, "No such container: none");
    refused(&run(&["--network", with, "-p", "81:80"]), 125, "port publishing and the container type network");
    refused(&run(&["--network", with, "--runtime", "strata-vm"]), 125, "a machine has a kernel of its own");
    refused(&run(&["--network", "host", "--runtime", "strata-vm"]), 125, "a machine has a kernel of its own");
    server.docker(&["rm", "-f", "side"]);
    server.docker(&["stop", "-t", "0", "web"]);
    refused(&run(&["--network", with]), 125, "cannot join network of a non running container");

    let ours = std::fs::read_to_string("/proc/net/dev").unwrap().lines().count();
    let count = ["debian", "sh", "-c", "wc -l < /proc/net/dev"];
    let inside = server.docker(&[&["run", "--rm", "--network", "host"][..], &count].concat());
    // Interfaces of other tests come and go; in a network of its own there are two.
    assert!(inside.trim().parse::<usize>().unwrap() > 4 || ours <= 4, "{inside} {ours}");
    let link =
        server.docker(&["run", "--rm", "--network", "host", "debian", "readlink", "/proc/self/ns/net"]);
    assert_eq!(link.trim(), std::fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
}

#[test]
fn the_network_with_the_highest_priority_leads_out() {
    let Some(server) = Server::with_client() else { return };
    let mut nets = Nets::new(&server);
    let (first, _) = nets.create("one", &[]);
    let (inner, _) = nets.create("inner", &["--internal"]);
    let (second, _) = nets.create("two", &[]);
    let gateway = |name: &str| {
        inspect(&server, "network", name)["IPAM"]["Config"][0]["Gateway"].as_str().unwrap().to_owned()
    };
    let hex = |address: &str| {
        let address: std::net::Ipv4Addr = address.parse().unwrap();
        format!("{:08X}", address.to_bits().to_be())
    };
    // The gateway of the default route, as the kernel writes it.
    let way_out = || {
        let said = server.docker(&["exec", "c", "cat", "/proc/net/route"]);
        let mut lines = said.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(1) == Some(&"00000000")).then(|| words[2].to_owned())
        });
        lines.next().unwrap_or_default()
    };
    let body = json!({
        "Image": "debian", "Cmd": ["sleep", "100000"], "HostConfig": {"NetworkMode": inner},
        "NetworkingConfig": {"EndpointsConfig": {&inner: {}, &first: {}, &second: {"GwPriority": 7}}},
    });
    let (status, said) = server.ask("POST", "/containers/create?name=c", &body.to_string());
    assert_eq!(status, 201, "{said}");
    server.docker(&["start", "c"]);
    let networks = inspect(&server, "container", "c")["NetworkSettings"]["Networks"].clone();
    assert_eq!(networks.as_object().unwrap().len(), 3);
    assert_eq!((&networks[&second]["GwPriority"], &networks[&first]["GwPriority"]), (&json!(7), &json!(0)));
    assert_eq!(way_out(), hex(&gateway(&second)));
    server.docker(&["network", "disconnect", &second, "c"]);
    assert_eq!(way_out(), hex(&gateway(&first)), "nothing leads out of the inner one");
    server.docker(&["network", "connect", &second, "c"]);
    assert_eq!(way_out(), hex(&gateway(&first)));
    server.docker(&["network", "disconnect", &second, "c"]);
    server.docker(&["network", "connect", "--gw-priority", "1", &second, "c"]);
    assert_eq!(way_out(), hex(&gateway(&second)));
    server.docker(&["restart", "-t", "0", "c"]);
    assert_eq!(way_out(), hex(&gateway(&second)));
}
