"""The colours of heat maps: the tables of the server's overlays, at 65 of their 256 entries.

Linear interpolation gives the other entries, at most 2 grey levels from OpenCV's tables.
"""

import functools

import numpy as np
from numpy.typing import NDArray

_KNOTS = np.rint(np.linspace(0, 255, 65))
# RGB colours, from cold to hot.
_TABLES = {
    "jet": (
        "0000800000900000a00000b00000c00000d00000e00000f00000ff0010ff0020ff0030ff0040ff0050ff"
        "0060ff0070ff0080ff0090ff00a0ff00b0ff00c0ff00d0ff00e0ff00f0ff02fffe12ffee22ffde32ffce"
        "42ffbe52ffae62ff9e72ff8e82ff7e8eff729eff62aeff52beff42ceff32deff22eeff12feff01fff000"
        "ffe000ffd000ffc000ffb000ffa000ff9000ff8000ff7000ff6000ff5000ff4000ff3000ff2000ff1000"
        "ff0000f00000e00000d00000c00000b00000a00000900000800000"
    ),
    "turbo": (
        "30123b351e58392a733d358b4040a2424bb54456c74661d6466be34776ee4680f6458afc4294ff3d9efe"
        "37a8fa2fb2f428bceb22c5e21ccdd819d5cd18ddc219e3b91fe9af27eea432f2983ff68a4ef97d5dfc6f"
        "6dfe627dff568bff4b99fe42a4fc3cacfb38b7f735c1f334cbed34d4e735dde037e5d938ecd13af2c93a"
        "f7c13afbb838fdae35fea431fe992cfd8d27fb8122f9751df56918f15d13ec530fe7490ce14109da3907"
        "d23105ca2a04c12302b71d02ac1701a11201950d018808027a0403"
    ),
    "viridis": (
        "44015446075a470d6047136548186a481d6f482374482878472d7b46327e453781443b84424086404588"
        "3e49893d4e8a3b528b39568c375b8d355f8d33638d31678e2f6b8e2e6f8e2c728e2a768e297a8e277e8e"
        "26828e25858e23898e228d8d21918c20938c1f978b1e9b8a1f9f881fa28721a68524aa8327ad812cb17e"
        "31b57b37b8783dbc7444bf704cc26c54c5685cc86365cb5e6ece5877d15381d34d8bd64695d840a0da39"
        "aadc32b5de2bc0df25cae11fd5e21adfe318eae51af4e61efde725"
    ),
    "inferno": (
        "00000402010a04031207051b0b072410092d150b371b0c41210c4a280b532f0a5b3609613d0965440a68"
        "4a0c6b510e6c57106e5d126e64156e6a176e71196e771c6d7d1e6d84206b8a226a9025689727669d2964"
        "a32c61a92e5eb0315bb63458bc3754c03a51c63d4dcb4149d04545d54a41da4e3cdf5337e35933e75e2e"
        "eb6429ee6a24f1711ff37819f67e14f8850ff98c0afa9407fb9b06fca309fcaa0ffcb216fbba1ffac228"
        "f9c932f7d13df5d949f4e156f2e865f1ef75f3f586f6fa96fcffa4"
    ),
}


@functools.cache
def table(colormap: str) -> NDArray[np.uint8]:
    """Returns the colours of a colormap: uint8 RGB (256, 3), from cold to hot.

    Raises:
        KeyError: There is no such colormap.
    """
    colors = np.frombuffer(bytes.fromhex(_TABLES[colormap]), np.uint8).reshape(-1, 3)
    entries = np.arange(256)
    channels = [np.interp(entries, _KNOTS, colors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
