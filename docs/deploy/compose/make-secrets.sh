#!/bin/sh
# Makes the passwords of `docker compose --profile fleet` in the folder `secrets`, once. Only the folder's owner can enter it.
# The files in it can be read by everybody who gets one of them mounted: PostgreSQL, Redis and Grafana run as users of
# their own.
set -eu
cd "$(dirname "$0")/../../.."

if [ -e secrets ]; then
    echo "The folder secrets exists already. Nothing was changed." >&2
    exit 1
fi

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

mkdir -m 700 secrets
umask 022
postgres=$(random 24)
redis=$(random 24)
printf '%s' "$postgres" >secrets/postgres_password
printf 'requirepass %s\n' "$redis" >secrets/redis.conf
printf '%s' "$(random 12)" >secrets/admin_password
printf '%s' "$(random 12)" >secrets/grafana_password
cat >secrets/gumcp.env <<END
DATABASE_URL=postgres://gumcp:$postgres@postgres:5432/gumcp
GUMCP_REDIS_URL=redis://:$redis@redis:6379/0
GUMCP_SECRET_KEY=$(random 32)
END
chmod 600 secrets/gumcp.env
echo "Made the folder secrets. The password of the admin's user operator is in secrets/admin_password."
