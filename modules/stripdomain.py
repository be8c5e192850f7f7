"""Remove the domain from user names before authentication: fred@isp.example logs in as fred."""

from l2tpns.plugins import PLUGIN_RET_OK, param_pre_auth


def plugin_pre_auth(event: param_pre_auth) -> int:
    name, at, _ = event.username.partition("@")
    if at and name:
        event.username = name
    return PLUGIN_RET_OK
