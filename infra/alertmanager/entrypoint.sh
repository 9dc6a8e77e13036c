#!/bin/sh
# Writes Alertmanager's configuration from settings, checks it, and becomes Alertmanager. Arguments go to Alertmanager.
# `entrypoint.sh --render` only writes. Runs as any user; needs one writable folder (a tmpfs is meant).
# In .env each has BI_ in front (ALERT_GRAFANA_URL is BI_GRAFANA_URL), and so have they in what is said of them here.
#
#   ALERT_CONFIG            where to write (default /tmp/alertmanager.yaml)
#   ALERT_RECEIVER          none (default) | webhook | email | slack
#   ALERT_WEBHOOK_URL_FILE  file with the webhook's URL
#   ALERT_SLACK_URL_FILE    file with Slack's incoming-webhook URL       ALERT_SLACK_CHANNEL  e.g. #bi-alerts
#   ALERT_EMAIL_TO, ALERT_EMAIL_FROM   addresses                         ALERT_SMTP_HOST      host:port
#   ALERT_SMTP_USER         may be empty                                 ALERT_SMTP_TLS       true (default) | false
#   ALERT_SMTP_PASSWORD_FILE  file with its password, when there is a user
#   ALERT_HEARTBEAT_URL_FILE  file with the URL that expects Watchdog every minute; empty: Watchdog goes nowhere
#   ALERT_GRAFANA_URL       where links to dashboards lead (default http://127.0.0.1:3000)
#   ALERT_GROUP_WAIT, ALERT_GROUP_INTERVAL, ALERT_REPEAT_INTERVAL   durations (30s, 5m, 4h)
#
# Secrets are never copied: the configuration names their files, and Alertmanager (0.26 or newer) reads them.
set -eu

CONFIG=${ALERT_CONFIG:-/tmp/alertmanager.yaml}
RECEIVER=${ALERT_RECEIVER:-none}
GRAFANA=${ALERT_GRAFANA_URL:-http://127.0.0.1:3000}
GROUP_WAIT=${ALERT_GROUP_WAIT:-30s}
GROUP_INTERVAL=${ALERT_GROUP_INTERVAL:-5m}
REPEAT_INTERVAL=${ALERT_REPEAT_INTERVAL:-4h}

fail() {
    echo "alertmanager settings: $1" >&2
    exit 1
}

# A setting's value as a YAML string in single quotes.
quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/''/g")"
}

# needs NAME VALUE: a setting that the chosen receiver cannot do without.
needs() {
    [ -n "$2" ] || fail "BI_ALERT_RECEIVER=$RECEIVER needs BI_$1"
}

# secret NAME PATH: a setting that names a file with a secret in it.
secret() {
    needs "$1" "$2"
    [ -r "$2" ] || fail "BI_$1: cannot read $2"
    [ -s "$2" ] || fail "BI_$1: $2 is empty"
}

# duration NAME VALUE: what goes into the file as it is must look as it should.
duration() {
    printf '%s\n' "$2" | grep -Eqx '([0-9]+(ms|s|m|h|d))+' || fail "BI_$1 is not a duration: $2"
}

webhook() {
    secret ALERT_WEBHOOK_URL_FILE "${ALERT_WEBHOOK_URL_FILE:-}"
    cat <<YAML
    webhook_configs:
      - url_file: $(quoted "$ALERT_WEBHOOK_URL_FILE")
        send_resolved: true
YAML
}

slack() {
    secret ALERT_SLACK_URL_FILE "${ALERT_SLACK_URL_FILE:-}"
    needs ALERT_SLACK_CHANNEL "${ALERT_SLACK_CHANNEL:-}"
    cat <<YAML
    slack_configs:
      - api_url_file: $(quoted "$ALERT_SLACK_URL_FILE")
        channel: $(quoted "$ALERT_SLACK_CHANNEL")
        send_resolved: true
        title: '{{ .Status | toUpper }} {{ .CommonLabels.severity }}: {{ .GroupLabels.alertname }}'
        text: >-
          {{ range .Alerts }}{{ .Annotations.summary }} {{ .Annotations.description }}
          <{{ .Annotations.runbook_url }}|Runbook> <$GRAFANA{{ .Annotations.dashboard_url }}|Dashboard>
          {{ end }}
YAML
}

email() {
    needs ALERT_EMAIL_TO "${ALERT_EMAIL_TO:-}"
    needs ALERT_EMAIL_FROM "${ALERT_EMAIL_FROM:-}"
    needs ALERT_SMTP_HOST "${ALERT_SMTP_HOST:-}"
    case ${ALERT_SMTP_TLS:-true} in true | false) ;; *) fail "BI_ALERT_SMTP_TLS is true or false" ;; esac
    cat <<YAML
    email_configs:
      - to: $(quoted "$ALERT_EMAIL_TO")
        from: $(quoted "$ALERT_EMAIL_FROM")
        smarthost: $(quoted "$ALERT_SMTP_HOST")
        require_tls: ${ALERT_SMTP_TLS:-true}
        send_resolved: true
        headers:
          Subject: '{{ .Status | toUpper }} {{ .CommonLabels.severity }}: {{ .GroupLabels.alertname }}'
        text: |
          {{ range .Alerts }}{{ .Annotations.summary }}
          {{ .Annotations.description }}
          Runbook:   {{ .Annotations.runbook_url }}
          Dashboard: $GRAFANA{{ .Annotations.dashboard_url }}

          {{ end }}
YAML
    if [ -n "${ALERT_SMTP_USER:-}" ]; then
        secret ALERT_SMTP_PASSWORD_FILE "${ALERT_SMTP_PASSWORD_FILE:-}"
        cat <<YAML
        auth_username: $(quoted "$ALERT_SMTP_USER")
        auth_password_file: $(quoted "$ALERT_SMTP_PASSWORD_FILE")
YAML
    fi
}

heartbeat() {
    [ -n "${ALERT_HEARTBEAT_URL_FILE:-}" ] || return 0
    secret ALERT_HEARTBEAT_URL_FILE "$ALERT_HEARTBEAT_URL_FILE"
    cat <<YAML
    webhook_configs:
      - url_file: $(quoted "$ALERT_HEARTBEAT_URL_FILE")
        send_resolved: false
YAML
}

render() {
    cat <<YAML
# Written by entrypoint.sh from settings at each start; do not edit.
global:
  resolve_timeout: 5m
route:
  receiver: team
  # One message per alert and kind of target, not one per replica.
  group_by: [alertname, job, slo]
  group_wait: $GROUP_WAIT
  group_interval: $GROUP_INTERVAL
  repeat_interval: $REPEAT_INTERVAL
  routes:
    - matchers: [alertname="Watchdog"]
      receiver: heartbeat
      group_by: [alertname]
      group_wait: 0s
      group_interval: 30s
      repeat_interval: 1m
    # Seen in Prometheus and Grafana; nobody is told.
    - matchers: [severity=~"none|info"]
      receiver: nobody
inhibit_rules:
  # The grave one mutes the mild one: the same alert on the same thing, or the same objective.
  - source_matchers: [severity="critical"]
    target_matchers: [severity="warning"]
    equal: [alertname, job, instance, device, query]
  - source_matchers: [severity="critical", slo!=""]
    target_matchers: [severity="warning", slo!=""]
    equal: [slo]
  # Causes mute their consequences.
  - source_matchers: [alertname="ServiceUnreachable"]
    target_matchers: [alertname=~"ProbeFailing|QueryReplicasMissing|TargetDown", job=~"|query|probe-replicas"]
  - source_matchers: [alertname="RedisDown"]
    target_matchers: [alertname=~"CacheCircuitOpen|CacheRedisErrors"]
receivers:
  - name: nobody
  - name: team
YAML
    case $RECEIVER in
        none) ;;
        webhook) webhook ;;
        slack) slack ;;
        email) email ;;
        *) fail "BI_ALERT_RECEIVER is none, webhook, email or slack, not $RECEIVER" ;;
    esac
    echo "  - name: heartbeat"
    heartbeat
}

duration ALERT_GROUP_WAIT "$GROUP_WAIT"
duration ALERT_GROUP_INTERVAL "$GROUP_INTERVAL"
duration ALERT_REPEAT_INTERVAL "$REPEAT_INTERVAL"
case $GRAFANA in *[!A-Za-z0-9:/._~-]*) fail "BI_GRAFANA_URL is not a plain address: $GRAFANA" ;; esac

umask 077
# In two steps: a `fail` inside must end this script, and half a file must not stay.
text=$(render)
printf '%s\n' "$text" >"$CONFIG"
[ "${1:-}" != "--render" ] || exit 0

if command -v amtool >/dev/null; then
    amtool check-config "$CONFIG" >/dev/null || fail "amtool refuses $CONFIG"
fi
# The image calls it alertmanager, Debian's package prometheus-alertmanager.
program=$(command -v alertmanager || command -v prometheus-alertmanager) || fail "no alertmanager on PATH"
exec "$program" --config.file="$CONFIG" "$@"
