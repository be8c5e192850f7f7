"""The interface for plugins, which import nothing else of l2tpns (manual: Plugins; docs/plugins.md).

from l2tpns.plugins import PLUGIN_RET_OK, PLUGIN_RET_STOP, PLUGIN_RET_ERROR, PluginError

The hooks are declared in l2tpns/hooks.py, and called on behalf of sessions by subscriber/plugin_hooks.py.
"""

from l2tpns.errors import PluginError
from l2tpns.hooks import (
    PLUGIN_API_VERSION,
    PLUGIN_RET_ERROR,
    PLUGIN_RET_OK,
    PLUGIN_RET_STOP,
    param_control,
    param_kill_session,
    param_new_session,
    param_packet_rx,
    param_packet_tx,
    param_post_auth,
    param_pre_auth,
    param_radius_account,
    param_radius_reset,
    param_radius_response,
    param_timer,
)
from l2tpns.plugins.server_api import Count, Login, Server, Variable
from l2tpns.plugins.session_api import Session

__all__ = [
    "PLUGIN_API_VERSION",
    "PLUGIN_RET_ERROR",
    "PLUGIN_RET_OK",
    "PLUGIN_RET_STOP",
    "Count",
    "Login",
    "PluginError",
    "Server",
    "Session",
    "Variable",
    "param_control",
    "param_kill_session",
    "param_new_session",
    "param_packet_rx",
    "param_packet_tx",
    "param_post_auth",
    "param_pre_auth",
    "param_radius_account",
    "param_radius_reset",
    "param_radius_response",
    "param_timer",
]
