//! `POST /containers/create`: what docker's words mean here, and which of them mean nothing here.

use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use bollard_stubs::models::{
    ContainerCreateBody, HealthConfig, HostConfig, NetworkingConfig, PortBinding, PortMap, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum, ThrottleDevice,
};
use serde::Deserialize;
use serde_json::json;
use workload::networks::Link;
use workload::{HealthCheck, HealthTest, Isolation, Restart, Workloads};

use super::params::Params;
use super::{App, endpoints, exec, images, json, tuning, volumes};
use crate::backend::{Creation, Limit, Network, Resolving, Throttle, Throttled};
use crate::error::{ApiError, Result};

/// The runtime that makes a container a machine of its own.
pub(super) const VM: &str = "strata-vm";
/// The runtime that is the default.
pub(super) const CONTAINER: &str = "strata";

/// What a client sends.
#[derive(Deserialize)]
pub(super) struct Body {
    #[serde(flatten)]
    body: ContainerCreateBody,
    /// Where clients of API 1.43 and before say it.
    #[serde(rename = "MacAddress")]
    mac: Option<String>,
}

/// `POST /containers/create`
pub(super) async fn create(
    State(app): App,
    params: Params,
    body: std::result::Result<Json<Body>, JsonRejection>,
) -> Result {
    let Json(Body { body, mac }) = body?;
    if let Some(platform) = params.get("platform").filter(|p| !matches!(*p, "linux/amd64" | "linux")) {
        return Err(ApiError::not_offered(format!("containers are linux/amd64, not {platform}")));
    }
    let name = params.get("name").map(str::to_owned);
    let is_all = body.host_config.as_ref().is_some_and(|host| host.publish_all_ports == Some(true));
    let exposed = is_all.then(|| body.exposed_ports.clone().unwrap_or_default());
    let mut creation = creation(body, mac.as_deref())?;
    let folder = app
        .blocking(move |backend| {
            // What is not here is a 404: clients pull it then. An id becomes a name.
            let image = images::find(backend.store(), &creation.image)?;
            creation.image = image.name().to_string();
            if let Some(exposed) = exposed.filter(|_| creation.network != Network::Host) {
                publish_all(&mut creation.publish, exposed.into_iter().chain(image.config().exposed_ports))?;
            }
            endpoints::resolve(&backend.workloads().networks()?, &mut creation.endpoints)?;
            name_by_id(backend.workloads(), &mut creation)?;
            Ok(backend.create(name, creation)?)
        })
        .await?;
    Ok(json(StatusCode::CREATED, &json!({ "Id": folder.description().id, "Warnings": [] })))
}

/// Has it name the containers whose network, processes or shared memory it has by their ids, which stay as they are.
fn name_by_id(workloads: &Workloads, creation: &mut Creation) -> Result<()> {
    let id_of = |name: &str| -> Result<String> {
        // Of what is not found docker's client takes the image for missing.
        let missing = |_| ApiError::bad(format!("No such container: {name}"));
        let folder = workloads.find(name.trim_start_matches('/')).map_err(missing)?;
        Ok(folder.description().id.clone())
    };
    let mut said = |key: &str, id: &str| {
        if let Some(mode) = creation.said.pointer_mut(&format!("/HostConfig/{key}")) {
            *mode = json!(format!("container:{id}"));
        }
    };
    if let Network::Container(name) = &mut creation.network {
        *name = id_of(name)?;
        said("NetworkMode", name);
    }
    for (key, mode) in [("PidMode", &mut creation.tuning.pid), ("IpcMode", &mut creation.tuning.ipc)] {
        if let Some(name) = mode.as_deref().and_then(|mode| mode.strip_prefix("container:")) {
            let id = id_of(name)?;
            said(key, &id);
            *mode = Some(format!("container:{id}"));
        }
    }
    Ok(())
}

/// What a client wants, in our words.
fn creation(body: ContainerCreateBody, mac: Option<&str>) -> Result<Creation> {
    let mut said = serde_json::to_value(&body).map_err(|error| ApiError::bad(error.to_string()))?;
    if let Some(mac) = mac {
        said["MacAddress"] = json!(mac);
    }
    let host = body.host_config.unwrap_or_default();
    refuse_what_is_not_there(&host)?;
    let mounts = volumes::wanted(&host, body.volumes.as_deref().unwrap_or_default())?;
    let image = body.image.filter(|image| !image.is_empty());
    let image = image.ok_or_else(|| ApiError::bad("No image was specified"))?;
    let isolation = isolation(host.runtime.as_deref().unwrap_or_default())?;
    let throttles = throttles(&host, isolation)?;
    let tuning = tuning::wanted(&host, body.domainname, isolation)?;
    let (log_driver, log_opts) = tuning::log_options(host.log_config.clone())?;
    let list = Option::unwrap_or_default;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let positive =
        |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).filter(|n| *n > 0);
    let is_off = body.network_disabled == Some(true);
    let mac = mac.filter(|mac| !mac.is_empty()).map(endpoints::parse_mac).transpose()?;
    let endpoints::Wanted { network, endpoints, mac } =
        connections(is_off, &host, body.networking_config, mac)?;
    let resolving = resolving(&host, &network)?;
    let has_hostname = body.hostname.as_ref().is_some_and(|name| !name.is_empty());
    let publish = published(&host, &network, has_hostname)?;
    Ok(Creation {
        isolation,
        image,
        // An empty one takes the image's away; docker's command sends [""] for that.
        entrypoint: body.entrypoint.map(|words| if words == [""] { Vec::new() } else { words }),
        command: list(body.cmd),
        env: list(body.env),
        workdir: given(body.working_dir),
        user: given(body.user),
        tty: body.tty.unwrap_or_default(),
        window: exec::console_size(host.console_size.as_deref()),
        stdin: body.open_stdin.unwrap_or_default(),
        hostname: given(body.hostname),
        labels: body.labels.unwrap_or_default().into_iter().collect(),
        memory: positive(host.memory),
        millicpus: millicpus(&host),
        pids_limit: host.pids_limit.filter(|limit| *limit != 0),
        cap_add: list(host.cap_add),
        cap_drop: list(host.cap_drop),
        security_opt: list(host.security_opt),
        read_only: host.readonly_rootfs.unwrap_or_default(),
        tmpfs: host.tmpfs.unwrap_or_default().into_iter().collect(),
        ulimits: host.ulimits.unwrap_or_default().into_iter().map(limit).collect(),
        privileged: host.privileged.unwrap_or_default(),
        remove: host.auto_remove.unwrap_or_default(),
        restart: restart(host.restart_policy)?,
        log_driver,
        log_opts,
        health: body.healthcheck.map(health).transpose()?.flatten(),
        stop_signal: given(body.stop_signal),
        network,
        endpoints,
        mac,
        resolving,
        publish,
        mounts,
        volumes_from: list(host.volumes_from),
        throttles,
        tuning,
        said,
    })
}

/// Ports of the host that lead to it, where its network is its own.
fn published(host: &HostConfig, network: &Network, has_hostname: bool) -> Result<Vec<String>> {
    let publish = publish(host.port_bindings.as_ref().unwrap_or(&PortMap::default()))?;
    match network {
        // They are the host's already.
        Network::Host => Ok(Vec::new()),
        Network::Container(_) if !publish.is_empty() => {
            let text = "conflicting options: port publishing and the container type network mode";
            Err(ApiError::bad(text))
        }
        Network::Container(_) if has_hostname => {
            Err(ApiError::bad("conflicting options: hostname and the network mode"))
        }
        _ => Ok(publish),
    }
}

pub(super) fn limit(limit: ResourcesUlimits) -> Limit {
    Limit {
        name: limit.name.unwrap_or_default(),
        soft: limit.soft.unwrap_or(-1),
        hard: limit.hard.unwrap_or(-1),
    }
}

/// Limits of disks of this host. 0 is none, as docker has it.
fn throttles(host: &HostConfig, isolation: Isolation) -> Result<Vec<Throttle>> {
    let lists: [(&str, Throttled, &Option<Vec<ThrottleDevice>>); 4] = [
        ("BlkioDeviceReadBps", Throttled::ReadBytes, &host.blkio_device_read_bps),
        ("BlkioDeviceWriteBps", Throttled::WriteBytes, &host.blkio_device_write_bps),
        ("BlkioDeviceReadIOps", Throttled::Reads, &host.blkio_device_read_iops),
        ("BlkioDeviceWriteIOps", Throttled::Writes, &host.blkio_device_write_iops),
    ];
    let mut all = Vec::new();
    for (name, of, list) in lists {
        for device in list.iter().flatten() {
            let path = device.path.clone().filter(|path| path.starts_with('/'));
            let path = path.ok_or_else(|| ApiError::bad(format!("HostConfig.{name}: no path of a disk")))?;
            let rate = u64::try_from(device.rate.unwrap_or_default());
            let rate = rate.map_err(|_| ApiError::bad(format!("HostConfig.{name}: a rate below 0")))?;
            if rate != 0 {
                all.push(Throttle { of, path, rate });
            }
        }
    }
    if isolation == Isolation::Vm && !all.is_empty() {
        let text = "HostConfig.BlkioDevice…: a microVM has no disk of this host; strata run has --disk-rate";
        return Err(ApiError::not_offered(text));
    }
    Ok(all)
}

fn isolation(runtime: &str) -> Result<Isolation> {
    match runtime {
        "" | CONTAINER => Ok(Isolation::Container),
        VM => Ok(Isolation::Vm),
        other => {
            let text = format!("unknown or invalid runtime name: {other}; there are {CONTAINER} and {VM}");
            Err(ApiError::bad(text))
        }
    }
}

/// Docker gives a number, or a quota in a period.
pub(super) fn millicpus(host: &HostConfig) -> Option<u64> {
    let nano = host.nano_cpus.unwrap_or_default();
    let milli = match (nano, host.cpu_quota, host.cpu_period) {
        (1.., ..) => nano / 1_000_000,
        (_, Some(quota @ 1..), period) => {
            quota.saturating_mul(1000) / period.filter(|period| *period > 0).unwrap_or(100_000)
        }
        _ => return None,
    };
    u64::try_from(milli.max(1)).ok()
}

/// What cannot be done is not silently left out.
fn refuse_what_is_not_there(host: &HostConfig) -> Result<()> {
    fn some<T>(list: &Option<Vec<T>>) -> bool {
        list.as_ref().is_some_and(|list| !list.is_empty())
    }
    let words = |text: &Option<String>, fine: &[&str]| {
        text.as_deref().is_some_and(|text| !text.is_empty() && !fine.contains(&text))
    };
    let number = |number: Option<i64>| number.is_some_and(|number| number != 0);
    let refused = [
        ("DeviceRequests", some(&host.device_requests)),
        ("StorageOpt", host.storage_opt.as_ref().is_some_and(|map| !map.is_empty())),
        ("OomKillDisable", host.oom_kill_disable == Some(true)),
        ("CgroupParent", words(&host.cgroup_parent, &[])),
        ("UsernsMode", words(&host.userns_mode, &["host"])),
        ("CpuRealtimePeriod", number(host.cpu_realtime_period)),
        ("CpuRealtimeRuntime", number(host.cpu_realtime_runtime)),
        ("BlkioWeightDevice", some(&host.blkio_weight_device)),
    ];
    let names: Vec<&str> = refused.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| *name).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(ApiError::not_offered(format!("HostConfig.{}: not there yet", names.join(", HostConfig."))))
}

/// What it is connected to.
fn connections(
    is_off: bool,
    host: &HostConfig,
    config: Option<NetworkingConfig>,
    mac: Option<[u8; 6]>,
) -> Result<endpoints::Wanted> {
    let mode = if is_off { "none" } else { host.network_mode.as_deref().unwrap_or_default() };
    let mut wanted = endpoints::wanted(mode, config.filter(|_| !is_off), mac)?;
    let links =
        host.links.iter().flatten().map(|text| endpoints::link(text)).collect::<Result<Vec<Link>>>()?;
    match wanted.endpoints.first_mut() {
        // Docker's command says it twice.
        Some(first) => first
            .links
            .extend(links.into_iter().filter(|link| !first.links.contains(link)).collect::<Vec<_>>()),
        None if links.is_empty() => {}
        None => {
            let text = "HostConfig.Links: on networks with a name only, where containers find each other by their names anyway";
            return Err(ApiError::not_offered(text));
        }
    }
    Ok(wanted)
}

/// Whom it asks for names.
fn resolving(host: &HostConfig, network: &Network) -> Result<Resolving> {
    let parse =
        |text: &String| text.parse().map_err(|_| ApiError::bad(format!("{text} is not a valid IP address")));
    let words = |list: &Option<Vec<String>>| {
        let list = list.clone().unwrap_or_default();
        let is_word = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        match list.iter().find(|text| !is_word(text)) {
            Some(wrong) => Err(ApiError::bad(format!("{wrong:?} is no word of resolv.conf"))),
            None => Ok(list),
        }
    };
    let wanted = Resolving {
        servers: host.dns.iter().flatten().map(parse).collect::<Result<_>>()?,
        search: words(&host.dns_search)?,
        options: words(&host.dns_options)?,
    };
    if wanted != Resolving::default() && matches!(network, Network::Container(_)) {
        return Err(ApiError::bad("conflicting options: dns and the network mode"));
    }
    Ok(wanted)
}

pub(super) fn restart(policy: Option<RestartPolicy>) -> Result<Restart> {
    let Some(policy) = policy else { return Ok(Restart::No) };
    let most = policy.maximum_retry_count.filter(|most| *most != 0);
    let most = most.map(u32::try_from).transpose();
    let most = most.map_err(|_| ApiError::bad("maximum retry count cannot be negative"))?;
    Ok(match policy.name {
        None | Some(RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO) => Restart::No,
        Some(RestartPolicyNameEnum::ON_FAILURE) => Restart::OnFailure(most),
        Some(RestartPolicyNameEnum::ALWAYS | RestartPolicyNameEnum::UNLESS_STOPPED) => Restart::Always,
    })
}

/// Nothing for the image's check, `Some(None)` for none.
fn health(config: HealthConfig) -> Result<Option<Option<HealthCheck>>> {
    let test = config.test.unwrap_or_default();
    let command = match HealthTest::parse(&test) {
        Some(HealthTest::Unsaid) => return Ok(None),
        Some(HealthTest::Off) => return Ok(Some(None)),
        Some(HealthTest::Command(command)) => command,
        None => return Err(ApiError::bad(format!("unknown health check {test:?}"))),
    };
    let ms = |nanoseconds: Option<i64>, default: Duration| match nanoseconds {
        Some(ns @ 1..) => (ns as u64 / 1_000_000).max(1),
        _ => default.as_millis() as u64,
    };
    Ok(Some(Some(HealthCheck {
        command,
        interval_ms: ms(config.interval, HealthCheck::PERIOD),
        timeout_ms: ms(config.timeout, HealthCheck::PERIOD),
        start_period_ms: ms(config.start_period, Duration::ZERO),
        retries: config
            .retries
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n > 0)
            .unwrap_or(HealthCheck::RETRIES),
    })))
}

/// `[HOSTIP:]HOSTPORT:PORT/PROTOCOL` for each binding.
fn publish(ports: &PortMap) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (port, bindings) in ports {
        let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let wrong = || ApiError::bad(format!("invalid port specification: {port:?}"));
        let number: u16 = number.parse().ok().filter(|number| *number != 0).ok_or_else(wrong)?;
        if !matches!(protocol, "tcp" | "udp") {
            return Err(ApiError::not_offered(format!(
                "port {port}: tcp and udp are published, {protocol} is not"
            )));
        }
        for binding in bindings.iter().flatten() {
            let ip = binding.host_ip.as_deref().unwrap_or_default();
            let ip: Ipv4Addr = match ip {
                "" => Ipv4Addr::UNSPECIFIED,
                ip => ip
                    .parse()
                    .map_err(|_| ApiError::not_offered(format!("publish on {ip}: no IPv4 address")))?,
            };
            let host: u16 = match binding.host_port.as_deref().unwrap_or_default() {
                "" | "0" => free_port(ip, protocol)?,
                port => port.parse().map_err(|_| ApiError::bad(format!("invalid host port {port:?}")))?,
            };
            all.push(format!("{ip}:{host}:{number}/{protocol}"));
        }
    }
    all.sort();
    Ok(all)
}

/// Has a free port of the host lead to each that is exposed and not published yet.
fn publish_all(publish: &mut Vec<String>, exposed: impl IntoIterator<Item = String>) -> Result<()> {
    for port in exposed {
        let port = if port.contains('/') { port } else { format!("{port}/tcp") };
        if publish.iter().any(|own| own.ends_with(&format!(":{port}"))) {
            continue;
        }
        let anywhere = PortBinding { host_ip: None, host_port: None };
        publish.extend(self::publish(&PortMap::from([(port, Some(vec![anywhere]))]))?);
    }
    Ok(())
}

/// A port that nobody has now. Somebody else may have it when the workload starts, which says so then.
fn free_port(ip: Ipv4Addr, protocol: &str) -> Result<u16> {
    let bound = match protocol {
        "udp" => UdpSocket::bind((ip, 0)).and_then(|socket| socket.local_addr()),
        _ => TcpListener::bind((ip, 0)).and_then(|socket| socket.local_addr()),
    };
    let address = bound.map_err(|error| ApiError::failed(format!("find a free port on {ip}: {error}")))?;
    Ok(address.port())
}

/// The bindings of published ports, as clients see them.
pub(super) fn bindings(publish: &[String]) -> HashMap<String, Vec<(String, String)>> {
    let mut map: HashMap<String, Vec<(String, String)>> = HashMap::new();
    for entry in publish {
        let (rest, protocol) = entry.split_once('/').unwrap_or((entry, "tcp"));
        let Some((host, port)) = rest.rsplit_once(':') else { continue };
        let (ip, host_port) = host.rsplit_once(':').unwrap_or(("0.0.0.0", host));
        map.entry(format!("{port}/{protocol}")).or_default().push((ip.to_owned(), host_port.to_owned()));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: serde_json::Value) -> Result<Creation> {
        creation(serde_json::from_value(json).unwrap(), None)
    }

    #[test]
    fn what_docker_sends_for_a_plain_run_is_understood() {
        let made = of(json!({
            "Hostname": "", "User": "", "Tty": false, "OpenStdin": true, "StdinOnce": true, "Env": null,
            "Cmd": ["echo", "hi"], "Image": "debian", "Volumes": {}, "WorkingDir": "", "Entrypoint": null,
            "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}},
            "HostConfig": {
                "Binds": null, "NetworkMode": "bridge", "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
                "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}, "MemorySwappiness": -1,
                "AutoRemove": true, "ConsoleSize": [0, 0], "NanoCpus": 1_500_000_000i64, "Memory": 1 << 20, "PidsLimit": 0,
                "Isolation": "", "CgroupnsMode": "", "Runtime": "strata-vm"
            }
        }))
        .unwrap();
        assert_eq!((made.isolation, made.image.as_str()), (Isolation::Vm, "debian"));
        assert_eq!((made.memory, made.millicpus, made.pids_limit), (Some(1 << 20), Some(1500), None));
        assert_eq!(made.publish, ["0.0.0.0:8080:80/tcp"]);
        assert_eq!((made.restart, made.remove, made.stdin), (Restart::OnFailure(Some(3)), true, true));
        assert_eq!((made.entrypoint, made.user, made.hostname), (None, None, None));
        assert_eq!(bindings(&made.publish)["80/tcp"], [("0.0.0.0".to_owned(), "8080".to_owned())]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let refused = |host: serde_json::Value| {
            let error = of(json!({"Image": "x", "HostConfig": host})).unwrap_err();
            (error.status.as_u16(), error.message)
        };
        let (status, message) = refused(json!({"CgroupParent": "x", "UsernsMode": "x"}));
        assert_eq!(
            (status, message.as_str()),
            (501, "HostConfig.CgroupParent, HostConfig.UsernsMode: not there yet")
        );
        for runtime in [VM, CONTAINER] {
            let made = of(json!({"Image": "x", "HostConfig": {"Init": true, "Runtime": runtime}})).unwrap();
            assert_eq!(made.tuning.init, runtime == CONTAINER);
        }
        assert_eq!(refused(json!({"Links": ["db"]})).0, 501);
        let host = json!({"Links": ["db:x"], "NetworkMode": "team"});
        assert_eq!(of(json!({"Image": "x", "HostConfig": host})).unwrap().endpoints[0].links[0].alias, "x");
        assert_eq!(refused(json!({"Runtime": "runc"})).0, 400);
        let host = json!({"NetworkMode": "host", "PortBindings": {"80/tcp": [{"HostPort": "80"}]}});
        assert!(of(json!({"Image": "x", "HostConfig": host})).unwrap().publish.is_empty());
        let joined = json!({"NetworkMode": "container:x", "PortBindings": {"80/tcp": [{"HostPort": "80"}]}});
        assert_eq!(refused(joined).0, 400);
        let mut publish = vec!["0.0.0.0:8080:80/tcp".to_owned()];
        publish_all(&mut publish, ["80/tcp", "53/udp", "90"].map(str::to_owned)).unwrap();
        let ends: Vec<_> = publish.iter().map(|entry| entry.rsplit(':').next().unwrap()).collect();
        assert_eq!(ends, ["80/tcp", "53/udp", "90/tcp"]);
        assert!(publish_all(&mut publish, ["x/tcp".to_owned()]).is_err());
        let joined = json!({"NetworkMode": "container:x", "Dns": ["10.0.0.1"]});
        assert_eq!(refused(joined).0, 400);
        assert_eq!(refused(json!({"Dns": ["x"]})).0, 400);
        assert_eq!(refused(json!({"NetworkMode": "team", "Dns": ["x"]})).0, 400);
        assert_eq!(refused(json!({"NetworkMode": "team", "DnsSearch": ["a\nb"]})).0, 400);
        for port in ["x/tcp", "0/tcp", "70000/tcp", ""] {
            assert_eq!(refused(json!({"PortBindings": {port: [{"HostPort": "1"}]}})).0, 400, "{port}");
        }
        assert_eq!(refused(json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": -1}})).0, 400);
        assert_eq!(of(json!({})).unwrap_err().status.as_u16(), 400);
    }

    #[test]
    fn rates_of_disks_are_a_containers() {
        let rate = json!([{"Path": "/dev/sda", "Rate": 1000}]);
        let made =
            of(json!({"Image": "x", "HostConfig": {"BlkioDeviceReadBps": rate, "BlkioDeviceWriteIOps": rate,
            "BlkioDeviceWriteBps": [{"Path": "/dev/sda", "Rate": 0}]}}));
        let row = |of| Throttle { of, path: "/dev/sda".to_owned(), rate: 1000 };
        assert_eq!(made.unwrap().throttles, [row(Throttled::ReadBytes), row(Throttled::Writes)]);
        let refused =
            |host: serde_json::Value| of(json!({"Image": "x", "HostConfig": host})).unwrap_err().status;
        assert_eq!(refused(json!({"BlkioDeviceReadBps": rate, "Runtime": VM})), 501);
        assert_eq!(refused(json!({"BlkioDeviceReadBps": [{"Path": "sda", "Rate": 1}]})), 400);
        assert_eq!(refused(json!({"BlkioDeviceReadBps": [{"Path": "/dev/sda", "Rate": -1}]})), 400);
    }

    #[test]
    fn health_checks_are_dockers() {
        let check = |test: &[&str]| {
            let test = Some(test.iter().map(|word| (*word).to_owned()).collect());
            health(HealthConfig { test, interval: Some(5_000_000_000), ..HealthConfig::default() })
        };
        let shell = check(&["CMD-SHELL", "true"]).unwrap().unwrap().unwrap();
        assert_eq!((shell.command[2].as_str(), shell.interval_ms, shell.retries), ("true", 5000, 3));
        assert_eq!(check(&["NONE"]), Ok(Some(None)));
        assert_eq!(check(&[]), Ok(None));
        assert!(check(&["FLY"]).is_err() && check(&["CMD"]).is_err());
    }
}
