"Metadata and requirements come from `settings.ini`, which nbdev reads too."

from configparser import ConfigParser

from setuptools import setup

ini = ConfigParser(delimiters=["="])
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
extras = {k.removesuffix("_requirements"): v.split() for k, v in cfg.items() if k.endswith("_requirements")}

setup(
    version=cfg["version"],
    description=cfg["description"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    # An editable install puts the checkout on the path: a folder named like the package does not hide it then.
    package_dir={"": "."},
    package_data={cfg["lib_name"]: cfg["package_data"].split()},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
