#!/bin/bash
# Stands for systemctl where there is no systemd: runs ExecStartPre and ExecStart of units as
# they are written, each service in a loop that starts it again (Restart=always), and waits
# for it to be ready (Type=notify) by its socket.
verb= units=()
for a in "$@"; do
  case $a in
    --*) ;;
    *) if [ -z "$verb" ]; then verb=$a; else units+=("${a%.service}"); fi ;;
  esac
done
exec >/dev/null

value() { sed -n "s/^$1=//p" "/usr/lib/systemd/system/$unit.service"; }

serve() { # runs the unit's process until it is to stop
  local pre
  pre=$(value ExecStartPre)
  while :; do
    if [ -z "$pre" ] || $pre; then
      $(value ExecStart) &
      echo $! >"/run/$unit.pid"
      wait $!
    fi
    [ ! -e "/run/$unit.stop" ] || exit 0
    sleep 1
  done
}

start() {
  rm -f "/run/$unit.stop"
  mkdir -p -m 0700 "/var/lib/$(value StateDirectory)" "/run/$(value RuntimeDirectory)"
  serve </dev/null >>"/var/log/$unit.log" 2>&1 &
  for _ in $(seq 300); do
    /usr/bin/steadfast --socket "/run/$(value RuntimeDirectory)/api.sock" status >/run/$unit.status 2>&1 && return
    sleep 0.2
  done
  echo "systemctl: $unit is not ready; its log ends:" >&2
  tail -5 "/var/log/$unit.log" >&2
  exit 1
}

stop() {
  touch "/run/$unit.stop"
  kill -TERM "$(cat "/run/$unit.pid")" || return
  while kill -0 "$(cat "/run/$unit.pid")" 2>/dev/null; do sleep 0.1; done
  rm -rf "/run/$(value RuntimeDirectory)"
}

for unit in "${units[@]}"; do
  [ -e "/usr/lib/systemd/system/$unit.service" ] || { echo "systemctl: there is no unit $unit" >&2; exit 5; }
  case $verb in
    enable | start) start ;;
    disable | stop) stop ;;
    restart) stop; start ;;
    kill) kill -KILL "$(cat "/run/$unit.pid")" ;;
    *) echo "systemctl: $verb is not what this stand-in does" >&2; exit 64 ;;
  esac
done
