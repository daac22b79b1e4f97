"""lorauter: product services call it through Client and AsyncClient."""
