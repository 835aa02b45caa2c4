"""vLLM's connector on kvferry: the decoder pulls the KV of a prompt under a lease, and uses it only when it is whole.

    --kv-transfer-config '{"kv_connector": "KVFerryConnector", "kv_connector_module_path": "kvferry.vllm",
                           "kv_role": "kv_producer"}'

docs/vllm.md has the settings. Nothing starts when this is imported.
"""

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from kvferry.vllm.connector import KVFerryConnector

# The same class under the name that users of vLLM's own connector have in their settings.
MooncakeConnector = KVFerryConnector

# vLLM's MultiConnector finds the classes of statistics by the connector's name in this registry.
if KVFerryConnector.__name__ not in KVConnectorFactory._registry:
    KVConnectorFactory.register_connector(KVFerryConnector.__name__, __name__, KVFerryConnector.__name__)

__all__ = ["KVFerryConnector", "MooncakeConnector"]
